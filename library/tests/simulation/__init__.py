"""The worker's side of the library in virtual time, against a model of the platform: a schedule from each seed.

What is not the real thing: the clock, the network below a connection, the platform, and the processes of the task
behind their sockets. The SDK's job loop with aiohttp, the worker's own POSTs, and all of ``intake``, ``job``,
``calls``, ``outcome`` and ``delivery`` run as they are, and so do both ends of what a process and the worker say to
each other.
"""

from aggregating_worker import before_sdk

before_sdk.prepare()
