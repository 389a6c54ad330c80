"""A worker's promises, as tests of its owner's own task.

``plugin`` has the fixtures for pytest, ``caller`` is who calls a worker in them, and ``promises`` are the tests. Faults
get into a task by ``planted``, and between a worker and the platform by ``faulty``. ``sdk`` runs it all on other SDKs.
"""
