"""Whether a call of a batch that is not full waits for more items."""

from aggregating_worker.calls.turns import Group

CROWD_AT_MOST = 0.1
"""Seconds for which a call waits for callers to send their next jobs."""


class Pace:
    """Fills calls of up to ``most`` items: for ``batch_wait`` seconds or, if that is 0, while a crowd comes back.

    Callers send their next job when the last result arrives. Starting at once would alternate half-full batches, so
    wait (as long as the last call took, 0.1 s at most) until as many jobs wait as were in hand.
    """

    def __init__(self, most: int, batch_wait: float) -> None:
        self._most = most
        self._batch_wait = batch_wait
        self._crowd = 0
        self._crowd_until = 0.0

    def wait_until(self, group: Group, jobs_waiting: int) -> float:
        """Return until when a call of ``group`` waits, in seconds of ``time.monotonic``; 0 if it is to start."""
        if group.waiting >= self._most:
            return 0.0
        if self._batch_wait:
            return group.since + self._batch_wait
        return self._crowd_until if jobs_waiting < self._crowd else 0.0

    def ended(self, now: float, took: float, crowd: int) -> None:
        """Take note of a call that has ended: ``crowd`` jobs may be about to come back."""
        self._crowd, self._crowd_until = crowd, now + min(took, CROWD_AT_MOST)
