"""The platform on a laptop: a queue, the worker protocol and the client API, with real workers in production mode.

``queue`` holds the jobs (``job``) and ``batch`` the batches; ``client_api`` and ``batch_api`` are what callers see,
``worker_api`` is what the SDK sees, ``page`` is what a browser sees (its ``form``, its ``feed``). ``guard`` says who is
let in, and ``body`` what. ``launch`` says what a worker is, ``workers`` keeps them alive, ``stops`` has them stop
a job, ``server`` puts it all on one port.
"""

from aggregating_worker.local.launch import Image
from aggregating_worker.local.server import LocalEndpoint

__all__ = ["Image", "LocalEndpoint"]
