"""Calls an endpoint: its jobs, their streams, and lists that are too long for one job.

``http`` makes a request until it is answered, ``api`` knows the endpoint's address and pace, ``job`` what is said of a
job. ``client`` follows one to its last envelope, ``envelopes`` checks them, ``files`` saves what is in them. ``map``
spreads a list: ``items`` reads it, ``shards`` cuts it, ``journal`` keeps what is done, all three are the ``work``.
``map_jobs`` does it in jobs, ``map_batch`` in Batch Jobs, which ``drafts`` makes with the calls in ``batch``.
"""

from aggregating_worker.client.client import Client
from aggregating_worker.client.envelopes import Envelope, Failure, Parts
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.job import JobFailed

__all__ = ["CallFailed", "Client", "Envelope", "Failure", "JobFailed", "Parts"]
