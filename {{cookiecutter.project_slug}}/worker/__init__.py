"""The worker's side of the queue: a job's items in, one envelope per item out.

A job passes through one way: ``job`` checks it, ``stream`` feeds its items to ``calls`` of the task, ``result`` makes
each outcome sendable, ``overflow`` keeps the sum within the response.
"""
