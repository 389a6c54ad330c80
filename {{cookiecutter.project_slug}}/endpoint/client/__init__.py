"""Calls an endpoint: its jobs, their streams, and lists that are too long for one job.

``api`` makes one call, ``client`` follows one job to its last envelope, ``envelopes`` checks them. ``map`` spreads a
list over many jobs: ``items`` reads it, ``shards`` cuts it, ``journal`` keeps what is done.
"""

from endpoint.client.client import Client
from endpoint.client.envelopes import Envelope, Failure
from endpoint.client.http import CallFailed
from endpoint.client.job import JobFailed

__all__ = ["CallFailed", "Client", "Envelope", "Failure", "JobFailed"]
