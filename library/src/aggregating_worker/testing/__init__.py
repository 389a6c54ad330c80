"""A worker's promises, as tests of its owner's own task.

``plugin`` has fixtures for pytest, ``caller`` is who calls a worker in them. ``promises`` are the tests, ``trial`` has
what they try. ``planted`` puts faults around a task, ``faulty`` between a worker and the platform. ``sdk`` runs a
project's tests with other SDKs.
"""
