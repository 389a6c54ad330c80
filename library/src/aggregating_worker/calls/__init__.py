"""Runs items: the calls of the task's function, one pool of them for all jobs."""
