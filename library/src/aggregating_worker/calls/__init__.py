"""What runs items: the task's calls, one pool of them for all jobs."""
