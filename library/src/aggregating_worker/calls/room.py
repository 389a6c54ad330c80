"""Room for more: the jobs in hand, and how many others could start."""

from aggregating_worker.calls.turns import Turns
from aggregating_worker.calls.work import Work


class Room:
    """The jobs that the worker has taken and not finished delivering, the oldest first.

    While their results have more than ``most_bytes``, there is no room, and only the oldest job goes on: so one of them
    always comes to its end.
    """

    def __init__(self, turns: Turns, most_bytes: int) -> None:
        self._turns = turns
        self._most_bytes = most_bytes
        self._jobs: dict[Work, None] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def enter(self, work: Work) -> None:
        """Count a job as in hand."""
        self._jobs[work] = None

    def leave(self, work: Work) -> None:
        """Do not count a job any more: it is over, and delivered if it could be."""
        self._jobs.pop(work, None)

    def of(self, job_id: str) -> list[Work]:
        """Return the job of this id, if it is in hand."""
        return [work for work in self._jobs if work.job_id == job_id]

    @property
    def unmade(self) -> list[Work]:
        """The jobs that have items without an outcome."""
        return [work for work in self._jobs if work.unmade]

    @property
    def full(self) -> bool:
        """Whether as many bytes wait for the platform as may."""
        return sum(work.output.size + work.unadmitted for work in self._jobs) >= self._most_bytes

    @property
    def oldest(self) -> Work | None:
        """The job that goes on when it is full."""
        return next(iter(self._jobs), None)

    def for_jobs(self, calls: int, most: int) -> int:
        """Return how many jobs of one item could start in so many ``calls``, of ``most`` items each.

        That is what the items that wait leave free. If one long job fills every slot, it is 1 once that job has its
        first result, so that an idle worker gets the next job first.
        """
        if self.full:
            return 0
        if (room := calls * most - self._turns.waiting) > 0:
            return room
        waiting = self._turns.jobs
        return int(len(waiting) == 1 and waiting[0].begun)
