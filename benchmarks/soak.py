"""Everything at once, for long: what came of it, and what grows in a worker that lives through it.

``make soak`` runs it. For each kind of function there is a local endpoint with two workers. Clients run, stream, cancel
and ``map`` jobs whose items fail, crash and hang; meanwhile workers are frozen, killed and told to stop, and the
platform is away, answers errors, and takes what it was sent without saying so. A run of half an hour or more is
written into docs/faults.md.
"""
# ruff: noqa: ASYNC230, ASYNC240  # the files of a list are small

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import readme
from aggregating_worker.client import Client
from aggregating_worker.client.job import FINAL, output
from aggregating_worker.client.map import map_file
from aggregating_worker.local import LocalEndpoint, stops
from aggregating_worker.local.queue import RETRIES
from aggregating_worker.local.workers import WorkerProcess
from aggregating_worker.testing.faulty import Faulty, answers, cut_off
from serve import Serve, machine

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "soak"
FAULTS = ROOT / "docs" / "faults.md"
HOUR = 3_600.0
KINDS = {"a plain function": "sync", "an `async` function": "async", "`process_batch`": "batch"}
CLIENTS = 4
"""Of each endpoint, beside the one that uses ``map``."""
LISTED = 300
"""Items of a list for ``map``."""
ITEM_TIMEOUT = 2.0
"""Seconds. A freeze is a good deal shorter, or longer by more than a second: only then has a call all of them again."""
OFTEN = 10.0
"""Seconds between two things that go wrong on the platform's side of an endpoint, on average."""
LOOK = 5.0
"""Seconds between two looks at how much a worker has."""
PATIENCE = 300.0
"""Seconds after which a job or a list is lost."""
WRONG = {"raise": "ValueError", "object": "TypeError", "end": "ProcessDied", "crash": "ProcessDied"}
WRONG |= {"hang": "TimeoutError", "hold": "TimeoutError"}
"""What items do wrong, and the type of their failure."""


@dataclass
class Soak:
    """One endpoint under load: what was ``done`` there, what was ``lost``, and what its first worker had."""

    kind: str
    endpoint: LocalEndpoint
    faulty: Faulty
    client: Client
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    looks: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Hours, megabytes, descriptors and processes of the first worker, which is frozen at times but never ended."""

    def miss(self, what: str) -> None:
        """Note that something is lost, or wrong."""
        self.lost.append(what)
        print(f"\n{time.strftime('%H:%M:%S')} {self.kind}: {what}", flush=True)

    def items(self, most: int) -> list[Any]:
        """Return up to ``most`` items, most of them good."""
        kinds = [*WRONG, {"bytes": 50_000}, 0]
        weights = [3, 1, 0.3, 0.3, 0.3, 0.15, 2, 93]
        drawn = self.chance.choices(kinds, weights, k=self.chance.randint(1, most))
        return [self.chance.randrange(10**6) if item == 0 else item for item in drawn]

    def check(self, what: str, items: list[Any], envelopes: list[Any]) -> None:
        """Count items whose envelopes are right, and note it if there is one that is not."""
        if (made := [_short(each) for each in envelopes]) != (right := [_right(item) for item in items]):
            wrong = [(index, *pair) for index, pair in enumerate(zip(made, right, strict=False)) if pair[0] != pair[1]]
            self.miss(f"{what}: {len(made)} of {len(right)} envelopes; {wrong[:3]}")
        elif [each["index"] for each in envelopes] != [*range(len(items))]:
            self.miss(f"{what}: the indices are wrong")
        self.done["items"] += len(items)

    async def one_job(self) -> None:
        """Send a job one way or another, and check what comes of it."""
        items = self.items(40)
        job = {"input": {"items": items}}
        way = self.chance.choice(["runsync", "run", "stream", "cancel"])
        if way == "runsync":
            self.check(way, items, await self.client.runsync(job))
        elif way == "run":
            self.check(way, items, await self.client.run(job))
        else:
            job_id = await self.client.submit(job)
            if way == "cancel":
                await asyncio.sleep(self.chance.uniform(0, 1))
                await self.client.cancel(job_id)
                if (state := await self.client.status(job_id))["status"] not in FINAL:
                    self.miss(f"cancel: {job_id} is {state['status']}")
            else:
                streamed = [each async for each in self.client.results(job_id, len(items))]
                self.check(way, items, streamed)
                while (state := await self.client.status(job_id))["status"] not in FINAL:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                self.check("aggregate", items, output(state, len(items)))
        self.done["cancelled jobs" if way == "cancel" else "jobs"] += 1

    async def one_list(self) -> None:
        """Put a list through ``map``, as jobs or as Batch Jobs; half of the time, stop it once and go on."""
        batch, items = self.chance.random() < 0.3, self.items(LISTED)
        with tempfile.TemporaryDirectory() as name:
            source, out = Path(name, "items.jsonl"), Path(name, "results.jsonl")
            source.write_text("".join(f"{json.dumps(item)}\n" for item in items))

            async def go(*, again: bool = False) -> None:
                with source.open("rb") as lines:
                    await map_file(
                        self.client, lines, out, job={"input": {}}, shard=25, in_flight=4, batch=batch, again=again
                    )

            if self.chance.random() < 0.5:
                with suppress(TimeoutError):
                    await asyncio.wait_for(go(), self.chance.uniform(0.5, 3))
            if not out.exists():
                await go(again=True)  # where it was stopped, it may not know whether the endpoint has a job
            self.check("map", items, [json.loads(line) for line in out.read_text().splitlines()])
        self.done["lists as Batch Jobs" if batch else "lists"] += 1

    async def go_on(self, what: Callable[[], Awaitable[None]], until: float) -> None:
        """Do ``what`` again and again; one that fails or does not end is lost."""
        while time.monotonic() < until:
            try:
                await asyncio.wait_for(what(), PATIENCE)
            except Exception as error:
                queues = (self.endpoint.queue, self.endpoint.batch_queue)
                held = [f"{job.id} by {job.worker}" for queue in queues for job in queue.held]
                self.miss(f"{what.__name__}: {error!r}; {sum(queue.waiting for queue in queues)} wait, {held}")

    async def disturb(self, until: float) -> None:
        """Do what goes wrong on the platform, one thing after another."""
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "outages": self.outage,
            "errors": self.errors,
            "lost answers": self.lose,
            "freezes": self.freeze,
            "workers killed": partial(self.end_one, signal.SIGKILL),
            "workers told to stop": partial(self.end_one, signal.SIGTERM),
        }
        while (pause := self.chance.expovariate(1 / OFTEN)) < until - time.monotonic():
            await asyncio.sleep(pause)
            what = self.chance.choice([*faults])
            await faults[what]()
            self.done[what] += 1

    async def outage(self) -> None:
        """Close every connection of the workers, and refuse new ones for a while.

        Before that, the platform gives out no more jobs: one in an answer that does not arrive is the platform's to
        find, and not the worker's.
        """
        self.faulty.plan("job-take", *[answers(503)] * 1_000)
        while self.faulty.open["job-take"]:  # noqa: ASYNC110  # in another thread
            await asyncio.sleep(0.1)
        await asyncio.to_thread(self.faulty.go_away)
        await asyncio.sleep(self.chance.uniform(0.1, 5))
        self.faulty.plan("job-take")
        await asyncio.to_thread(self.faulty.come_back)

    async def errors(self) -> None:
        """Answer the next requests with errors."""
        for route in ("job-take", "job-stream", "job-done"):
            self.faulty.plan(route, *[answers(self.chance.choice([429, 500, 502]))] * self.chance.randint(1, 3))

    async def lose(self) -> None:
        """Close the connection of the next POSTs, most of which have arrived, without an answer."""
        for route in ("job-stream", "job-done"):
            self.faulty.plan(route, cut_off(arrives=self.chance.random() < 0.8))

    async def freeze(self) -> None:
        """Freeze a worker for a while, with the processes of its task or without."""
        whole = psutil.Process(self.chance.choice(self.endpoint.workers.running).process.pid)
        with suppress(psutil.NoSuchProcess):
            frozen = [whole, *(whole.children(recursive=True) if self.chance.random() < 0.5 else [])]
            for each in frozen:
                with suppress(psutil.NoSuchProcess):
                    each.suspend()
            await asyncio.sleep(self.chance.choice([0.3, 1, 5]))
            for each in reversed(frozen):
                with suppress(psutil.NoSuchProcess):
                    each.resume()

    async def end_one(self, number: signal.Signals) -> None:
        """Send a signal to a worker that is not the first, once there is one."""
        while not (others := self.others()):  # noqa: ASYNC110  # another thread starts it
            await asyncio.sleep(0.1)
        with suppress(ProcessLookupError):
            os.kill(others[0].process.pid, number)

    def others(self) -> list[WorkerProcess]:
        """Return the workers that may be ended: not the first, and none with a job that the endpoint would give up."""
        given_up = {job.worker for job in self.endpoint.queue.held if job.retries == RETRIES}
        ready = [worker for worker in self.endpoint.workers.running if worker.ready and worker is not self.first]
        return [worker for worker in ready if worker.id not in given_up]

    @property
    def first(self) -> WorkerProcess:
        """The worker that has lived longest."""
        return self.endpoint.workers.running[0]

    async def look(self, until: float) -> None:
        """Note every ``LOOK`` seconds what the first worker has."""
        began, worker = time.monotonic(), self.first
        while time.monotonic() < until:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(worker.process.pid)
                memory, processes = process.memory_info().rss / 1e6, len(process.children(recursive=True))
                self.looks.append(((time.monotonic() - began) / HOUR, memory, process.num_fds(), processes))
            if worker is not self.first:
                self.miss("the first worker has ended")
                return
            await asyncio.sleep(LOOK)


def _short(envelope: Any) -> Any:
    return envelope["result"] if envelope["success"] else envelope["failure"]["type"]


def _right(item: Any) -> Any:
    if isinstance(item, dict):
        return "x" * item["bytes"]
    return WRONG.get(item, item)


@contextmanager
def served(kind: str) -> Iterator[tuple[LocalEndpoint, Faulty]]:
    """Serve the task ``everything`` as one kind of function, behind what disturbs it."""
    env = {"KIND": kind, "ITEM_TIMEOUT": f"{ITEM_TIMEOUT:g}", "PROCESSES": "2", "CHUNK_SIZE": "8", "BATCH_SIZE": "8"}
    with ExitStack() as stack:
        faulty = stack.enter_context(Faulty())
        log = stack.enter_context((LOGS / f"{kind}.log").open("wb"))
        endpoint = stack.enter_context(Serve().ours("everything", workers=2, env=env, command=faulty.command, log=log))
        faulty.endpoint_url = endpoint.url
        yield endpoint, faulty


@asynccontextmanager
async def soaked(seed: str) -> AsyncIterator[dict[str, Soak]]:
    """Serve every kind."""
    LOGS.mkdir(parents=True, exist_ok=True)
    stops.GRACE = PATIENCE  # an outage and a freeze keep a worker from saying that it has stopped a job
    async with AsyncExitStack() as stack:
        soaks = {}
        for words, kind in KINDS.items():
            endpoint, faulty = stack.enter_context(served(kind))
            client = Client("local", api_key="any", base_url=endpoint.base_url, told=lambda _: None)
            await stack.enter_async_context(client)
            soaks[words] = Soak(kind, endpoint, faulty, client, random.Random(f"{seed} {kind}"))  # noqa: S311
        yield soaks


async def run(seconds: float, seed: str) -> tuple[dict[str, Soak], int]:
    """Soak every kind for so long; return what came of it, and how many processes are left."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    async with soaked(seed) as soaks:
        began = time.monotonic()
        until = began + seconds

        async def say() -> None:
            while time.monotonic() < until:
                await asyncio.sleep(LOOK)
                print(f"\r{time.monotonic() - began:,.0f} of {seconds:,.0f} s: {done(soaks)}", end="", file=sys.stderr)

        async with asyncio.TaskGroup() as group:
            group.create_task(say())
            for soak in soaks.values():
                for _ in range(CLIENTS):
                    group.create_task(soak.go_on(soak.one_job, until))
                group.create_task(soak.go_on(soak.one_list, until))
                group.create_task(soak.disturb(until))
                group.create_task(soak.look(until))
        print(file=sys.stderr)
    left = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]
    return soaks, len(left)


def done(soaks: dict[str, Soak]) -> str:
    """Say what was done, in words."""
    together = sum((soak.done for soak in soaks.values()), Counter[str]())
    return ", ".join(f"{number:,} {what}" for what, number in together.most_common())


def grown(looks: list[tuple[float, float, float, float]], column: int) -> str:
    """Say how much there was after the first tenth and in the last, and how much more an hour brings."""
    later = looks[len(looks) // 10 :]
    tenth = max(1, len(later) // 9)
    values = [look[column] for look in later]
    slope = statistics.linear_regression([look[0] for look in later], values).slope
    return f"{statistics.mean(values[:tenth]):.1f} → {statistics.mean(values[-tenth:]):.1f} | {slope:+.1f}"


def report(soaks: dict[str, Soak], seconds: float, left: int) -> str:
    """Return what docs/faults.md says of a run."""
    lost = sum(len(soak.lost) for soak in soaks.values())
    rows = [[words, *(grown(soak.looks, column) for column in (1, 2, 3))] for words, soak in soaks.items()]
    return "\n".join(
        [
            f"In {seconds:,.0f} s ({machine()}): {done(soaks)}. Lost: {lost}. Processes left at the end: {left}.",
            "",
            "| a worker around | MB | an hour | descriptors | an hour | processes | an hour |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    )


def main() -> int:
    """Run it for the given seconds; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=HOUR)
    parser.add_argument("--seed", default=str(random.randrange(10**6)), help="of what is sent, and what goes wrong")  # noqa: S311
    given = parser.parse_args()
    logging.getLogger("aiohttp.server").disabled = True  # it says how requests end that an outage has cut
    soaks, left = asyncio.run(run(given.seconds, given.seed))
    text = report(soaks, given.seconds, left)
    print(text)
    if given.seconds >= HOUR / 2:
        readme.write("soak", text, page=FAULTS)
    return int(left > 0 or any(soak.lost for soak in soaks.values()))


if __name__ == "__main__":
    sys.exit(main())
