"""Delivery to the platform: chunks, parts and final bodies, each posted until it is taken."""
