"""The platform on a laptop: a queue, the worker protocol and the client API, with real workers in production mode.

``queue`` holds the jobs (``job``), ``batch`` the batches. ``client_api``, ``openai_api`` and ``batch_api`` serve
callers, ``webhooks`` calls back, ``worker_api`` serves the SDK, ``page`` a browser (with ``form`` and ``feed``).
``protocol`` and ``guard`` decide who may call, ``body`` reads what they send. ``launch`` starts workers, ``workers``
keeps them alive, ``stops`` tells them to stop a job. ``server`` puts it all on one port; ``serve`` and ``demo`` are the
commands.
"""

from aggregating_worker.local.launch import Image
from aggregating_worker.local.server import LocalEndpoint

__all__ = ["Image", "LocalEndpoint"]
