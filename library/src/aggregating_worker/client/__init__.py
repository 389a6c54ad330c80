"""Calls an endpoint: runs jobs, streams their results, and spreads a list that is too long for one job over many.

``http`` sends requests and retries them, ``api`` is the job API of one endpoint, ``job`` reads its answers about a job,
``envelopes`` checks what the worker returned, and ``files`` saves the files in it. ``client`` follows a job to its last
envelope, and ``waiting`` says why one is still queued. ``map`` puts a long list through the endpoint: ``items`` reads
it, ``shards`` cuts it into jobs, ``journal`` keeps what is done, and ``long_list`` holds all three. ``map_jobs``
submits the shards as jobs, ``map_batch`` as Batch Jobs, through the calls in ``batch``. ``command`` and ``arguments``
are the command line.
"""

from aggregating_worker.client.client import Client
from aggregating_worker.client.envelopes import Envelope, Failure, Parts
from aggregating_worker.client.http import CallFailed, JobUnknown
from aggregating_worker.client.job import AnotherWorker, JobFailed

__all__ = ["AnotherWorker", "CallFailed", "Client", "Envelope", "Failure", "JobFailed", "JobUnknown", "Parts"]
