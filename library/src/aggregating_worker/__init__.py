"""A worker for Runpod Serverless that streams each item's result and returns all of them as one list.

A job goes one way: ``intake`` takes it, ``job`` checks it, ``calls`` run its items in the processes of
``process``, ``outcome`` makes an envelope of
each that is known to be sendable, and ``delivery`` posts them until they are taken. On the other side of the queue,
``local`` is the platform on a laptop, ``client`` calls an endpoint, ``deploy`` puts an image on one, and ``testing``
holds a worker's promises on its owner's own task.
"""

from aggregating_worker.context import Context
from aggregating_worker.failed import ItemFailed
from aggregating_worker.model import find_device, find_model
from aggregating_worker.worker import Worker

__all__ = ["Context", "ItemFailed", "Worker", "find_device", "find_model"]
