"""The other side of the queue: what calls a worker, and what stands in for the platform. Never in the image."""
