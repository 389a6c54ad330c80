"""What a seed stands for: a task, its settings, jobs, and all that happens to them; and one run of it."""

import asyncio
import gc
import os
import signal
import warnings
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest import mock

from runpod.serverless.modules import rp_http, rp_job, rp_logger, rp_scale
from runpod.serverless.modules.worker_state import JobsProgress

from aggregating_worker.delivery import post
from aggregating_worker.intake import loop
from aggregating_worker.job import JobRunner
from aggregating_worker.outcome.bucket import NotStored
from aggregating_worker.process.threads import Threads
from aggregating_worker.settings import Settings
from tests.simulation.checks import Checks
from tests.simulation.clock import Broken, World, virtual
from tests.simulation.platform import Job, Platform
from tests.simulation.processes import Machine, task

URL = "http://192.0.2.1"
"""For documentation (RFC 5737): nothing answers there."""
PATIENCE = 5_000.0
"""Seconds in which every job comes to its end, once nothing goes wrong any more, and the worker after it."""
GOOD = ("is made",) * 12
ODD = """
raises|is an exception|asks for a restart|loses the GPU|returns an error|dies|dies once|says half and dies|hangs|
never lets go|holds the GIL|holds the GIL once|asks for a new worker|is a file|tells|is nothing that Input knows
""".replace("\n", "").split("|")
DEADLY = {*ODD} - {"raises", "is an exception", "returns an error", "is a file", "tells"}
CATCHING = ("raises", "asks for a restart", "dies", "says half and dies", "holds the GIL")
"""What ends a call that has the items of others in it, too."""
ENDLESS = ("hangs", "never lets go", "holds the GIL")


@dataclass
class Schedule:
    """Drawn from a seed."""

    seed: int
    kind: str = "one"
    settings: dict[str, Any] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    crowd: bool = False
    """Whether small jobs share calls, and may be cancelled while these run."""

    def __post_init__(self) -> None:
        draw = self.draw = Random(f"schedule {self.seed}")
        self.kind = draw.choice(["one", "parts", "batch", "batch"])
        self.settings = {
            "item_concurrency": draw.choice([1, 1, 2, 4]),
            "lookahead": draw.choice([1, 2, 4, 16, 64]),
            "batch_size": draw.choice([1, 2, 4, 32]),
            "batch_wait": draw.choice([0, 0, 0.2]),
            "chunk_size": draw.choice([1, 1, 3]),
            "item_timeout": draw.choice([0, 2.0, 5.0]),
            "deliver_for": draw.choice([5, 30, 300, 300]),
            "job_concurrency": draw.choice([None, None, None, 1, 2]),
            "max_output_bytes": draw.choice([10_000_000, 10_000_000, 3_000]),
            "undelivered_bytes": draw.choice([200_000_000, 200_000_000, 3_000]),
        }
        odd = draw.choice([0.0, 0.0, 0.1, 0.4])
        kinds = draw.sample(ODD, draw.choice([1, 2, 4]))
        if not self.settings["item_timeout"]:
            kinds = [kind for kind in kinds if kind not in ENDLESS]
        alone = draw.random() < 0.2
        for number in range(draw.choice([1, 2, 3, 4, 6, 8])):
            items = [self._item(kinds if draw.random() < odd else GOOD) for _ in range(draw.choice([1, 1, 2, 3, 8]))]
            options = number if alone else draw.choice([0, 0, 0, number])
            self.jobs.append({"items": items, "option": options})
        self.crowd = Random(f"together {self.seed}").random() < 0.1
        if self.crowd:
            self._come_together()

    def _come_together(self) -> None:
        """Have small jobs of a batch task come at once, and some be cancelled while their items run."""
        draw, self.kind = self.draw, "batch"
        self.settings |= {"batch_size": draw.choice([2, 4]), "batch_wait": 0.2, "item_timeout": 5.0}
        kinds = draw.sample(CATCHING, 2)
        for job in self.jobs:
            odd = draw.random() < 0.4
            job["items"] = [self._item(kinds if odd else GOOD) for _ in range(draw.choice([1, 1, 2]))]
            job["option"] = 0
            for item in job["items"] if odd else ():
                item["cancelled"] = draw.choice([0, 1, 1, 2])

    @property
    def deadly(self) -> int:
        """How many items may end a process."""
        return sum(item["what"] in DEADLY for job in self.jobs for item in job["items"])

    @property
    def holds(self) -> bool:
        """Whether an item keeps all others in its process."""
        return any(item["what"].startswith("holds") for job in self.jobs for item in job["items"])

    def _item(self, kinds: Any) -> dict[str, Any]:
        draw = self.draw
        what = draw.choice(kinds or GOOD)
        if what == "is nothing that Input knows":
            return {"what": what, "unknown": 1}
        return {"what": what, "seconds": draw.choice([0.0, 0.0, 0.01, 0.3, 1.0]), "bytes": draw.choice([0, 0, 500])}


class Bucket:
    """A bucket that sometimes does not take a result."""

    def __init__(self, world: World) -> None:
        self._world = world

    def url_bytes(self, key: str) -> int:
        return len(key) + 20

    def store(self, key: str, body: bytes, content_type: str = "", name: str = "") -> str:
        if self._world.random.random() < 0.1:
            raise NotStored("The bucket is not there.")
        return f"https://bucket/{key}"


class Run:
    """One run of a schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.world = world = World(schedule.seed)
        draw = self.draw = schedule.draw
        self.platform = Platform(
            world,
            trouble=draw.choice([0.0, 0.0, 0.02, 0.1, 0.3]),
            far=draw.choice([0.0, 0.001, 0.05, 0.25]),
            held=draw.choice([3.0, 10.0, 80.0]),
            largest=draw.choice([10_000_000, 10_000_000, 1_500]),
            forgets=draw.random() < 0.5,
        )
        self.settings = Settings.model_construct(**schedule.settings)  # unread, which takes long: no environment
        self.ended = False

    def go(self) -> World:
        """Run it; raise ``Broken`` if a promise does not hold."""
        with virtual(self.world) as event_loop, around(self):
            event_loop.set_exception_handler(lambda _, context: self._unhandled(context))
            main = event_loop.create_task(self._live())
            try:
                event_loop.run_until_complete(main)
            finally:
                self.world.idle, self.world.broken = lambda: None, ""
                event_loop.run_until_complete(self._clear_away())
        self.checks.end()
        return self.world

    async def _clear_away(self) -> None:
        """End what still runs, and close what is open, as the end of a real worker does."""
        for process in self.processes:
            process.let_go()
            process._kill_server()
        for living in self.machine.running.values():
            living.die(-signal.SIGKILL)
        this_loop: Any = asyncio.get_running_loop()
        for transport in [*this_loop._transports.values()]:
            transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.wait([*others, asyncio.create_task(asyncio.sleep(0.1))], timeout=100)

    def _unhandled(self, context: dict[str, Any]) -> None:
        if "get_stop_signals" in repr(context.get("future")):  # ended twice at once, in Python 3.11's ``wait_for``
            return
        self.world.check(False, f"Nobody handles: {context['message']}: {context.get('exception')!r}")

    async def _live(self) -> None:
        """Be the worker, from its start to its end."""
        schedule, draw = self.schedule, self.draw
        module = task(schedule.kind)
        slots = self.settings.item_concurrency or 1
        batch = self.settings.batch_size if schedule.kind == "batch" else 1
        loads_badly = draw.choice([0.0, 0.0, 0.0, 0.3])
        self.machine = Machine(self.world, module, slots, batch, loads_badly, self.platform.cancel)
        with mock.patch("os.killpg", self.machine.killpg):
            self.processes = [self.machine.process() for _ in range(draw.choice([1, 1, 2]))]
            self.jobs = jobs = JobRunner(module, self.settings, self.processes)
            if draw.random() < 0.3:
                jobs._own_bucket = Bucket(self.world)  # type: ignore[assignment]
            loop.install(jobs)

            async def handler(job: dict[str, Any]) -> AsyncGenerator[Any, None]:  # as ``handler.py`` has it
                async with aclosing(jobs.run(job)) as results:
                    async for result in results:
                        yield result

            self.scaler = rp_scale.JobScaler({"handler": handler, "return_aggregate_stream": True})
            self.checks = Checks(self)
            self.world.idle = self.checks.idle
            self._plan()
            await self.scaler.run()
            self.ended = True

    def _plan(self) -> None:
        """Have the world do what the seed says."""
        draw, world, platform = self.draw, self.world, self.platform
        at = 0.0
        crowd = draw.random() < 0.3 or self.schedule.crowd
        ends = draw.choice([0.0, 0.2, 0.2, 0.6])
        arrivals = []
        for number, body in enumerate(self.schedule.jobs):
            at += draw.choice([0.0, 0.001] if crowd else [0.0, 0.0, 0.01, 0.5, 5.0])
            arrivals.append(at)
            name = f"{draw.choice(['job', 'sync'])}-{number}"
            sent = {"id": name, "input": body, "batchId": name}
            job = Job(name, sent, refused=draw.random() < 0.02)
            world.after(at, lambda job=job: platform.submit(job))  # type: ignore[misc]
            later = at + draw.choice([0.005, 0.2, 1.0, 1.0, 20.0]) * draw.random()
            if draw.random() < ends:
                fate = draw.choice(["CANCELLED", "CANCELLED", "TIMED_OUT", "FORGOTTEN"])
                world.after(later, lambda job=job, fate=fate: platform.end(job, fate))  # type: ignore[misc]
            elif draw.random() < 0.05:
                world.after(later, lambda job=job: platform.repeat(job))  # type: ignore[misc]
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            self._outage(draw.random() * 10, draw.choice([0.5, 5.0, 5.0, 40.0]))
        if draw.random() < 0.007:
            self._outage(draw.random() * 5, 1_300.0, draw.choice(["refuses", "500"]))
        for _ in range(draw.choice([0, 0, 0, 1])):
            self.frozen = draw.choice([2.0, 100.0, 1_000.0])
            world.after(draw.random() * 10, lambda: world.freeze(self.frozen))
        moment = draw.choice(arrivals) + draw.random() * draw.choice([0.1, 0.5, 2.0])
        stop = draw.choice([None, None, moment])
        if stop is not None:
            world.after(stop, self._stop)
        world.after(at + 3.0, self._wait)

    def _outage(self, at: float, seconds: float, kind: str = "") -> None:
        platform, kind = self.platform, kind or self.draw.choice(["refuses", "silent", "500", "429"])
        self.longest = max(self.longest, seconds)
        self.world.after(at, lambda: setattr(platform, "outage", kind))
        self.world.after(at + seconds, lambda: setattr(platform, "outage", ""))

    longest = 0.0
    """Seconds of the longest outage."""
    frozen = 0.0
    """Seconds for which it is frozen."""
    asking = 0
    """How many takes the worker waits for."""
    patience = 0.0
    """When everything has to be done."""

    def _wait(self) -> None:
        """Once nothing goes wrong any more, tell the worker to stop when all that is wanted is done."""
        platform, world = self.platform, self.world
        if platform.outage:
            return world.after(3.0, self._wait)
        platform.calm = True
        self.patience = self.patience or world.now + PATIENCE
        if self.checks.settled or platform.told_to_stop is not None:
            self._stop()
            return world.after(PATIENCE, lambda: world.check(self.ended, "The worker does not end."))
        world.check(world.now < self.patience, f"These jobs do not end: {self.checks.unsettled}")
        return world.after(3.0, self._wait)

    def _stop(self) -> None:
        if self.platform.told_to_stop is None:
            self.world.note("SIGTERM")
            self.platform.told_to_stop = self.world.now
            self.scaler.handle_shutdown(signal.SIGTERM, None)


@contextmanager
def around(run: Run) -> Iterator[None]:
    """Put the simulated in the place of the real, and leave nothing behind."""
    network = run.platform.network
    environment = {"RUNPOD_WEBHOOK_PING": f"{URL}/ping", "RUNPOD_POD_ID": "w"}

    def later(_: Threads, call: Any) -> None:
        asyncio.get_running_loop().call_later(run.world.random.choice([0.0, 0.01, 0.4]), call)

    def logged(_: object, message: str, level: str = "INFO", job_id: str | None = None) -> None:
        batch = rp_logger._batch_id.get()
        run.world.check(
            batch is None or job_id is None or batch == job_id, f"{job_id} logs in the context of {batch}: {message}"
        )

    get_job = rp_scale.get_job

    async def counted(*arguments: Any) -> Any:
        run.asking += 1
        run.checks.asks()
        try:
            return await get_job(*arguments)
        finally:
            run.asking -= 1
            run.checks.asked = run.world.now

    with (
        warnings.catch_warnings(),
        mock.patch.object(rp_scale, "get_job", counted),
        mock.patch.dict(os.environ, environment),
        mock.patch.object(rp_job, "JOB_GET_URL", f"{URL}/job-take/w?gpu=none"),
        mock.patch.object(rp_http, "JOB_DONE_URL", f"{URL}/job-done/w/$ID?gpu=none"),
        mock.patch.object(rp_http, "JOB_STREAM_URL", f"{URL}/job-stream/w/$ID?gpu=none"),
        mock.patch.object(rp_job, "stream_result", rp_job.stream_result),  # ``loop.install`` replaces these three
        mock.patch.object(rp_job, "send_result", rp_job.send_result),
        mock.patch.object(rp_scale, "JobScaler", rp_scale.JobScaler),
        mock.patch.object(rp_logger.RunPodLogger, "log", logged),
        mock.patch.object(post, "start_connection", network.connect),
        mock.patch("aiohttp.connector.aiohappyeyeballs.start_connection", network.connect),
        mock.patch.object(Threads, "run", later),
    ):
        JobsProgress().clear()
        warnings.simplefilter("ignore", ResourceWarning)  # what the end of a process closes
        gc.freeze()  # collections, at moments that no seed decides, would end generators
        gc.disable()
        try:
            yield
        finally:
            gc.collect()
            gc.enable()
            gc.unfreeze()


def found_by(seed: int) -> str:
    """Run the schedule of a seed; return what it has found, or nothing."""
    try:
        Run(Schedule(seed)).go()
    except Broken as broken:
        return str(broken)
    except Exception as error:  # the worker itself has ended
        return f"{type(error).__name__}: {error}"
    return ""


def failed(seeds: range) -> list[tuple[int, str]]:
    """Run the schedules of ``seeds``; return those that have found something, and what."""
    return [(seed, what) for seed in seeds if (what := found_by(seed))]
