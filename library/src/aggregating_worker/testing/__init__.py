"""A worker's promises, as tests of its owner's own task: a pytest plugin, and what its fixtures give.

``plugin`` has the fixtures, ``caller`` is what calls a worker in them, ``promises`` are the tests, and ``planted`` is how
faults get into a task that has none.
"""

from aggregating_worker.testing.caller import Caller, Serve

__all__ = ["Caller", "Serve"]
