"""What this worker promises, on your task and your test_input.json. The library has the tests."""

from aggregating_worker.testing.promises import *  # noqa: F403
