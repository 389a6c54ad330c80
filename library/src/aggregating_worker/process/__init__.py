"""The processes that run the task: the worker's side of them, and the side that runs in there."""
