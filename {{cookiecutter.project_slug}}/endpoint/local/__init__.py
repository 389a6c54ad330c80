"""The platform on a laptop: a queue, the worker protocol and the client API, with real workers in production mode.

``queue`` holds the jobs, ``client_api`` is what callers see, ``worker_api`` is what the SDK sees, ``workers`` keeps the
processes alive, ``server`` puts them on one port.
"""

from endpoint.local.server import LocalEndpoint

__all__ = ["LocalEndpoint"]
