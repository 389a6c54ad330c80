"""What must hold: whenever time is about to pass, and when the worker has ended."""

import json
import math
from typing import TYPE_CHECKING, Any

from aggregating_worker.calls.work import TOGETHER, Work
from tests.simulation.clock import Broken
from tests.simulation.platform import Job

if TYPE_CHECKING:
    from tests.simulation.schedule import Run

LONGEST_REST = 6.1
"""Seconds for which no job is asked for, at most: after a 429, five of the SDK's and one of the loop's."""
SHORTEST_REST = 0.3
"""Seconds between takes, once a few have failed."""
FAILURES = {
    "raises": ("ValueError",),
    "is an exception": ("ValueError",),
    "asks for a restart": ("ItemFailed",),
    "loses the GPU": ("RuntimeError",),
    "returns an error": ("Error",),
    "dies": ("ProcessDied",),
    "says half and dies": ("ProcessDied",),
    "hangs": ("TimeoutError",),
    "never lets go": ("TimeoutError",),
    "holds the GIL": ("TimeoutError", "ProcessDied"),
    "is nothing that Input knows": ("InvalidItem",),
}
"""The type of failure that an envelope of such an item may name; all others succeed."""
TEXTS = ("returns an error", "is an exception")
"""What is no failure, but one more part, of an item that is made in parts."""


class Checks:
    """Looks at the worker and the platform of a run."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._world, self._platform = run.world, run.platform
        self._check = run.world.check
        self.asked = run.world.now
        """When the worker last waited for a job, or could not do one."""
        self._asks, self._in_vain, self._brought = run.world.now, 0, 0

    def asks(self) -> None:
        """It asks for a job: after a rest, if the last takes brought nothing and did not wait for it."""
        rested, self._asks = self._world.now >= self._asks + SHORTEST_REST, self._world.now
        brought = len([job for job in self._platform.jobs.values() if job.state != "IN_QUEUE"])
        self._in_vain = 0 if rested or brought != self._brought else self._in_vain + 1
        self._brought = brought
        self._check(self._in_vain < 20, "the worker asks again and again, without a pause")

    # Whenever time is about to pass

    def idle(self) -> None:
        """Nothing that could be done is left undone."""
        slots, scaler, now = self._run.jobs.slots, self._run.scaler, self._world.now
        works = [*slots.room._jobs]
        full, oldest = slots.room.full, slots.room.oldest
        due = [work for work in works if _due(work) and (not full or work is oldest)]
        holds = slots._alarm is not None and not slots._alarm.cancelled()
        for seat in slots._seats:
            self._check(0 <= seat.in_use <= seat.process.slots, "more calls than slots")
            if seat.free <= 0:
                continue
            if seat.suspects or seat.trial is not None:
                waits = not (seat.in_use or seat.process.attempts)
                self._check(not waits, "suspects wait, and nothing runs beside them")
                continue
            self._check(not slots._again, "a call that is to be tried again waits while a slot is free")
            self._check(not due or holds, f"{[work.job_id for work in due]} wait while a slot is free")
        for work in works:
            self._check_work(work)
        if not scaler._shutdown_event.is_set():
            self._check(not scaler._coming, f"{scaler._coming} are taken and not started")
            self._check_takes(works, now)
        most = slots.most_items * 2_000 + self._run.settings.max_output_bytes
        others = sum(work.output.size + work.unadmitted for work in works if work is not oldest)
        bound = self._run.settings.undelivered_bytes + most
        self._check(others <= bound, f"{others} bytes wait for the platform, beyond UNDELIVERED_BYTES")

    def _check_work(self, work: Work) -> None:
        """A result that can be sent is on its way, and no more are begun than LOOKAHEAD allows."""
        name = work.job_id
        ready = work._ready.get(work._taken)
        posted = not (work.parts and ready and ready.index in work.parts.posting)
        waits = work._waits is not None and not work._waits.done()
        self._check(not (work.alive and ready and posted and waits), f"a result of {name} is ready, and is not sent")
        ahead = self._run.settings.lookahead + self._run.settings.chunk_size - 1
        self._check(work._started - work._taken <= ahead, f"{name} is further ahead than LOOKAHEAD")

    def _check_takes(self, works: list[Work], now: float) -> None:
        """A job is asked for where one could start."""
        scaler = self._run.scaler
        waiting = bool(scaler._room._waiters)
        self._check(not (waiting and scaler._wanted() >= 1), "there is room for a job, and nobody asks for one")
        can = any(seat.process.ready and not seat.suspects for seat in self._run.jobs.slots._seats)
        if works or scaler._jobs or not can or self._run.asking:
            self.asked = now
        self._check(now <= self.asked + LONGEST_REST, "the worker has nothing to do, and asks for no job")

    # When the worker has ended

    @property
    def unsettled(self) -> list[str]:
        """The jobs that somebody waits for."""
        return [job.id for job in self._platform.jobs.values() if not job.over and not self._given_up(job)]

    @property
    def settled(self) -> bool:
        """Whether nobody waits for anything."""
        return not self.unsettled and len(self._platform.jobs) == len(self._run.schedule.jobs)

    def _given_up(self, job: Job) -> bool:
        return job.id in self.may_be_lost and self._run.jobs.sender.lost and bool(job.given)

    @property
    def may_be_lost(self) -> list[str]:
        """The jobs whose result the platform may not have taken within ``DELIVER_FOR``."""
        patient = self._run.settings.deliver_for >= 100
        trouble, longest = self._platform.trouble, self._run.longest
        rough = trouble >= 0.3 or longest >= 100 or not (patient or trouble == longest == 0)
        return [job.id for job in self._platform.jobs.values() if rough]

    def end(self) -> None:
        """Every job that is wanted has its one final body, and the worker has let go of everything."""
        run = self._run
        self._check(run.ended, "the worker has not ended")
        self._check(not len(run.jobs.slots.room), "jobs are still in hand at the end")
        self._check(not run.scaler.jobs_tasks and not run.scaler._jobs, "jobs still run at the end")
        calls = [call for seat in run.jobs.slots._seats for call in seat.process.attempts.values()]
        self._check(all(call.unwanted for call in calls), "calls run at the end that nobody has given up")
        refused = any(job.refused for job in self._platform.jobs.values())
        self._check(not run.jobs.ends or run.machine.hopeless or refused, "the worker has ended by itself")
        for number, job in enumerate(self._platform.jobs.values()):
            self._check_job(job, run.schedule.jobs[number])
        if self._world.broken:
            raise Broken(self._world.broken)

    def _check_job(self, job: Job, body: dict[str, Any]) -> None:
        run, stop = self._run, self._platform.told_to_stop or math.inf
        taken = [given for given in job.given if given <= stop]
        if not job.wanted or not taken or (run.jobs.sender.lost and job.id in self.may_be_lost):
            return
        if run.jobs.ends and not job.finals:
            return  # handed back
        self._check(bool(job.finals), f"{job.id} has no final body")
        for final in job.finals:
            if job.refused:
                self._check("error" in final, f"{job.id} should fail: {final}")
            else:
                self._check_final(job, body["items"], final)

    def _check_final(self, job: Job, items: list[dict[str, Any]], final: dict[str, Any]) -> None:
        self._check("output" in final, f"{job.id} fails: {final.get('error')}")
        flat = [one for each in final.get("output", []) for one in (each if isinstance(each, list) else [each])]
        indices = [envelope["index"] for envelope in flat]
        self._check(indices == [*range(len(items))], f"{job.id} has envelopes {indices} of {len(items)} items")
        for item, envelope in zip(items, flat, strict=False):
            right = _is_right(item, envelope, job, self._run)
            self._check(right, f"{job.id}: an item that {item} has {json.dumps(envelope)[:200]}")
        small = self._platform.largest > 1_000_000
        if len(job.given) == 1 and small and not self.may_be_lost:
            self._check(job.stream == flat, f"{job.id}: the stream differs from the aggregate: {job.stream}")
        asks = self._run.schedule.kind != "parts" and any(
            item["what"] == "asks for a new worker" and one["success"] for item, one in zip(items, flat, strict=False)
        )
        self._check(not asks or final.get("stopPod") is True, f"{job.id} does not ask for a new worker")


def _due(work: Work) -> bool:
    """Whether items could start, and do not wait for enough to start together while results wait to be sent."""
    return work.startable > 0 and (
        work.startable >= work._lookahead / TOGETHER or len(work._ready) < work._lookahead / 2
    )


def _is_right(item: dict[str, Any], envelope: dict[str, Any], job: Job, run: "Run") -> bool:
    """Whether an item has the outcome that it asks for, whatever the others do."""
    schedule, late = run.schedule, 0.0 < run.frozen < 10.0  # a timer that rings a second late is believed
    what, mine = item["what"], f"{job.id}:{envelope['index']}"
    if not envelope["success"]:
        why = envelope["failure"]["type"]
        crowded = what.endswith("once") and schedule.deadly > 1  # it may be the last that a dead process had in hand
        held = schedule.holds and schedule.settings["item_concurrency"] > 1  # by another call, which took its time
        return (
            why in ("OutputTooLarge", "NotStored")
            or why in FAILURES.get(what, ())
            or (crowded and why in ("ProcessDied", "TimeoutError"))
            or ((held or late) and why == "TimeoutError")
        )
    if "result_url" in envelope:
        return bool(envelope["result_url"].startswith(f"https://bucket/{job.id}/"))
    result = envelope["result"]
    if what in FAILURES and not (schedule.kind == "parts" and what in TEXTS):
        return what == "is an exception" and schedule.kind != "batch"
    if schedule.kind == "parts":
        return bool(result.startswith(f"{mine} and ") and mine in result[len(mine) :])
    return bool(result["mine"] == mine)
