"""The platform: a queue, the jobs in it, and what it does with what a worker asks and posts.

From its documentation and the SDK's source. What goes wrong is drawn for each request, as often as ``trouble`` says.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.clock import World
from tests.simulation.network import Network, Request

GIVEN_OUT_AGAIN = 40.0
"""Seconds after which a job that no worker seems to have is in the queue again."""
PATIENCE = 15.0
"""Seconds that the worker waits for an answer, at least (``delivery/sender.py``)."""


@dataclass(eq=False)
class Job:
    """A job, as the platform and its caller see it."""

    id: str
    body: dict[str, Any]
    state: str = "IN_QUEUE"
    given: list[float] = field(default_factory=list)
    """When it was given to the worker, which has read the answer."""
    refused: bool = False
    """Whether its result is refused for good."""
    stream: list[Any] = field(default_factory=list)
    """The envelopes that have come, each the first time."""
    parts: dict[int, list[Any]] = field(default_factory=dict)
    finals: list[dict[str, Any]] = field(default_factory=list)
    knows: dict[str, int] = field(default_factory=dict)
    """How often the worker knows that a body, or the final one, has been taken."""

    @property
    def over(self) -> bool:
        return self.state not in ("IN_QUEUE", "IN_PROGRESS")

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it, or has got it."""
        return self.state in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED")


@dataclass(eq=False)
class Platform:
    """Serves one worker, with what goes wrong at the given rate."""

    world: World
    trouble: float
    far: float
    held: float
    """Seconds for which a poll is held."""
    largest: int
    """Bytes of a body that it takes."""
    forgets: bool
    """Whether it answers 404 for a job that is over."""
    jobs: dict[str, Job] = field(default_factory=dict)
    queue: list[Job] = field(default_factory=list)
    outage: str = ""
    """What it does at present instead of anything else."""
    calm: bool = False
    """Whether nothing goes wrong any more."""
    told_to_stop: float | None = None
    _polls: list[tuple[Request, int]] = field(default_factory=list)
    _stops: list[str] = field(default_factory=list)
    _stop_polls: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = Network(self.world, self.ask, self.far, self._down)

    def _down(self) -> str:
        if self.outage in ("refuses", "silent"):
            return self.outage
        return "refuses" if self._wrong(0.3) else ""

    def _wrong(self, part: float = 1.0) -> bool:
        return not self.calm and self.world.random.random() < self.trouble * part

    # What callers do

    def submit(self, job: Job) -> None:
        self.jobs[job.id] = job
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        job.state = "IN_QUEUE"
        self.queue.append(job)
        while self.queue and self._polls:
            self._give(*self._polls.pop(0))

    def end(self, job: Job, state: str) -> None:
        """Cancel a job, or end it since its time is over."""
        if job.over:
            return
        self.world.note(f"{job.id} is {state}")
        if job in self.queue:
            self.queue.remove(job)
        elif state != "FORGOTTEN":
            self._stops.append(job.id)
            self._tell_stops()
        job.state = state

    def cancel(self, job_id: str) -> None:
        """Cancel a job while it runs."""
        self.end(self.jobs[job_id], "CANCELLED")

    def repeat(self, job: Job) -> None:
        """Give a job out again though it is in hand."""
        if job.state == "IN_PROGRESS":
            self._enqueue(job)

    # What the worker asks

    def ask(self, request: Request) -> None:
        match self.outage:
            case "silent":
                return None
            case "refuses":
                return request.hang_up()
            case "500" | "429":
                return self._answer(request, int(self.outage))
        match request.method, request.path:
            case "GET", [("job-take" | "job-take-batch"), _]:
                self._take(request, int(request.query.get("batch_size", ["1"])[0]))
            case "GET", ["job-stop", _]:
                self._poll_stops(request)
            case "GET", ["ping"]:
                self._answer(request, 200)
            case "GET", _:
                self._answer(request, 200, b'{"some": "page"}')
            case "POST", _:
                self._post(request)
        return None

    def _answer(self, request: Request, status: int, body: bytes = b"", **more: Any) -> None:
        def answer() -> None:
            request.answer(status, body, **more)
            request.connection.rest(self.world.random.choice([2.0, 14.999, 30.0]))

        self.world.after(self._back(), answer)

    def _back(self) -> float:
        return self.far + self.world.random.choice([0.0, 0.0, 0.02]) * self.world.random.random()

    def _take(self, request: Request, most: int) -> None:
        if self._wrong():
            match self.world.random.choice(["204", "400", "429", "500", "cut", "half"]):
                case "cut":
                    return request.hang_up()
                case "half":
                    return self._answer(request, 200, b'[{"id": "', upto=90)
                case status:
                    return self._answer(request, int(status))
        if self.queue:
            return self._give(request, most)
        self._polls.append((request, most))
        self.world.after(self.held, lambda: self._let_go(request, most))
        return None

    def _let_go(self, request: Request, most: int) -> None:
        if (request, most) in self._polls:
            self._polls.remove((request, most))
            self._answer(request, 204)

    def _give(self, request: Request, most: int) -> None:
        if request.cut:
            return
        jobs, left = self.queue[:most], self.queue[most:]
        self.queue[:] = left
        for job in jobs:
            job.state = "IN_PROGRESS"
        whole, since = not self._wrong(), self.world.now
        body = json.dumps([job.body for job in jobs]).encode()
        body = body if "batch" in request.path[0] else body[1:-1]

        def answer() -> None:
            taken = request.answer(200, body, upto=None if whole else self.world.random.randrange(len(body)))
            lost = whole and not taken and since <= (self.told_to_stop or 0.0)
            calm = not (self.outage or self.trouble)  # then a ping tells the worker that the answer has come
            self.world.check(not (calm and lost), f"{request.path[0]} is cut at SIGTERM with jobs on their way")
            for job in jobs:
                self.world.note(f"{job.id} is given{'' if whole and taken else ' in vain'}")
                if whole and taken:
                    job.given.append(since)
                else:
                    self.world.after(GIVEN_OUT_AGAIN, lambda job=job: self.repeat(job))  # type: ignore[misc]

        self.world.after(self._back(), answer)

    def _poll_stops(self, request: Request) -> None:
        if self._wrong(0.5):
            return request.hang_up()
        self._stop_polls.append(request)
        self._tell_stops()
        return self.world.after(self.held, lambda: self._tell_stops(request))

    def _tell_stops(self, over: Request | None = None) -> None:
        while self._stop_polls and (self._stops or over in self._stop_polls):
            self._answer(self._stop_polls.pop(0), 200, json.dumps({"jobsToStop": self._stops}).encode())
            self._stops = []

    # What the worker posts

    def _post(self, request: Request) -> None:
        route, _, job_id = request.path[-3:]
        job, body = self.jobs[job_id], json.loads(request.body)
        progress = body.get("status") == "IN_PROGRESS"
        final = route == "job-done" and not progress
        kind = self._kind_of_trouble(request, job, final and "error" not in body)
        self.world.note(f"{request.path}: {request.body[:60]!r} {kind}")
        match kind:
            case "cut":
                return request.hang_up()
            case "moved" | "lost":
                where = f"Location: /{kind}/{'/'.join(request.path)}?q=1\r\n"
                return self._answer(request, 307 if kind == "moved" else 303, headers=where)
            case "429":
                return self._answer(request, 429, headers=f"Retry-After: {self.world.random.choice([0, 1, 5])}\r\n")
            case "400" | "404" | "408" | "413" | "500" | "503":
                return self._answer(request, int(kind))
        if progress:
            self.world.check(not job.finals, f"{job_id} has progress after its final body")
        elif final:
            self._take_final(job, body)
        else:
            self._take_chunk(job, body, request.body.decode())
        match kind:
            case "unanswered":
                return self.world.after(self._back(), request.hang_up)
            case "half":
                return self._answer(request, 200, upto=9)
            case "late":
                wait = self.world.random.choice([1.0, PATIENCE + 5])
                return self.world.after(wait, lambda: self._taken(request, job, final, wait))
        return self.world.after(self._back(), lambda: self._taken(request, job, final))

    def _kind_of_trouble(self, request: Request, job: Job, final: bool) -> str:
        if self.forgets and job.state in ("CANCELLED", "TIMED_OUT", "FORGOTTEN"):
            return "404"
        if len(request.body) > self.largest:
            return "413"
        if job.refused and final:
            return "400"
        if not self._wrong():
            return ""
        kinds = "cut 500 503 429 408 unanswered half late".split()
        return self.world.random.choice(kinds if request.path[0] == "moved" else [*kinds, "moved", "lost"])

    def _taken(self, request: Request, job: Job, final: bool, wait: float = 0.0) -> None:
        key = "final" if final else request.body.decode()
        read = wait < PATIENCE and not (
            self.world.frozen_until and request.path[0] == "moved"
        )  # there the SDK reads it
        if request.answer(self.world.random.choice([200, 200, 202])) and read:
            job.knows[key] = job.knows.get(key, 0) + 1
        request.connection.rest(self.world.random.choice([2.0, 14.999, 30.0]))

    def _take_final(self, job: Job, body: dict[str, Any]) -> None:
        known = job.knows.get("final", 0)
        self.world.check(
            known < max(1, len(job.given)), f"{job.id} gets another final body, though the first was taken"
        )
        job.finals.append(body)
        if not job.over:
            job.state = "FAILED" if "error" in body else "COMPLETED"
            self.queue[:] = [each for each in self.queue if each is not job]

    def _take_chunk(self, job: Job, body: dict[str, Any], text: str) -> None:
        output = body["output"]
        self.world.check(len(job.finals) < max(1, len(job.given)), f"{job.id} has a chunk after its final body")
        for envelope in output if isinstance(output, list) else [output]:
            if "parts" in envelope:
                job.parts.setdefault(envelope["index"], []).extend(envelope["parts"])
                continue
            again = [seen for seen in job.stream if seen["index"] == envelope["index"]]
            known = job.knows.get(text, 0)
            self.world.check(not again or known < max(1, len(job.given)), f"{job.id} streams {envelope} twice")
            job.stream += [] if again else [envelope]
