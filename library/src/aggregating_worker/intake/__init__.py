"""Starts the worker and takes jobs."""
