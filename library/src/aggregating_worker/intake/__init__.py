"""What starts the worker and takes jobs."""
