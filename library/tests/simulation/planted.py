"""Defects that the worker has had, or might have: each put back in, the simulation has to find it."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aggregating_worker

LIBRARY = Path(__file__).parents[2]
SOURCE = Path(aggregating_worker.__file__).parent


@dataclass(frozen=True)
class Planted:
    """A defect: in ``file``, ``right`` becomes ``wrong``."""

    name: str
    file: str
    right: str
    wrong: str

    def found(self, seeds: range) -> tuple[int, str]:
        """Return the first seed that finds it, and what that says. Raises ``AssertionError`` if there is none."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(SOURCE, copy := Path(folder) / "aggregating_worker", ignore=shutil.ignore_patterns("*.pyc"))
            text = (copy / self.file).read_text(encoding="utf-8")
            assert text.count(self.right) == 1, f"{self.file} has changed: plant '{self.name}' anew."
            (copy / self.file).write_text(text.replace(self.right, self.wrong), encoding="utf-8")
            path = os.pathsep.join((folder, str(LIBRARY)))
            command = [sys.executable, "-m", "tests.simulation", "--first", str(seeds.start), str(seeds.stop)]
            said = subprocess.run(
                command, cwd=LIBRARY, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
            )
        seed, _, what = said.stdout.strip().partition(" ")
        assert seed, f"'{self.name}' is not found by {seeds}.\n{said.stderr}"
        return int(seed), what


PLANTED = [
    Planted(
        "A loop over groups of jobs that shrinks ends early: what waits behind two cancelled jobs is not started",
        "calls/turns.py",
        """\
        for options, group in list(self._groups.items()):
            if group.waiting and held(group):
                continue
            items""",
        """\
        passed = 0
        while passed < len(self._groups):
            options, group = next(iter(self._groups.items()))
            passed += 1
            if group.waiting and held(group):
                self._groups[options] = self._groups.pop(options)
                continue
            items""",
    ),
    Planted(
        "`2**failures` overflows after a long outage, and takes follow one another without a pause",
        "intake/loop.py",
        """\
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
""",
        """\
        self._pause = int(self._pause) + 1  # the failures
        await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._pause))
""",
    ),
    Planted(
        "A call runs in the context of the job whose end has led to it",
        "calls/slots.py",
        "context = items[0].work.context if len({item.work for item in items}) == 1 else contextvars.Context()",
        "context = contextvars.copy_context()",
    ),
    Planted(
        "At SIGTERM a poll is cut without waiting for a round trip: the job in its answer is lost",
        "intake/loop.py",
        "await asyncio.wait({taking, pinging}, timeout=ROUND_TRIP, return_when=asyncio.FIRST_COMPLETED)",
        "await asyncio.sleep(0)",
    ),
    Planted(
        "A final body that has been taken with another status than 200 is sent again",
        "delivery/sender.py",
        "if answer.status < 300:",
        "if answer.status == 200:",
    ),
    Planted(
        "A 404 stops nothing: a job that the platform has forgotten is sent for ever",
        "delivery/sender.py",
        "                    if unknown:\n",
        "                    if unknown and job_id is None:\n",
    ),
    Planted(
        "Half of a batch that succeeds is not counted: the other half is never tried again, and its job hangs",
        "calls/slots.py",
        """\
            seat.health.succeeded()
            self._again.resolve(call)
""",
        """\
            seat.health.succeeded()
""",
    ),
    Planted(
        "A job that is cancelled while a chunk is on its way stays in hand for ever, with its results",
        "calls/slots.py",
        """\
        for work in self.room.of(job_id):
            self.room.leave(work)
            self.leave(work)
""",
        """\
        for work in self.room.of(job_id):
            if not work.alive:
                self.room.leave(work)
        self.look()
""",
    ),
    Planted(
        "Once what forks the processes has died, the next one is not heard",
        "process/beside.py",
        "                self._leave(descriptor)  # the next",
        "                pass  # the next",
    ),
    Planted(
        "A poll that is answered during a freeze of more than ten minutes is lost with its jobs",
        "intake/loop.py",
        ", timeout=ClientTimeout()",
        "",
    ),
    Planted(
        "Nobody looks for what could start once a thread has finished a result with a file",
        "calls/work.py",
        "            self._look()  # its call",
        "            pass  # its call",
    ),
    Planted(
        "An item fails by that of a job that was cancelled during their call",
        "calls/again.py",
        "            if tried == 1:\n",
        "            if tried:\n",
    ),
    Planted(
        "A body that has been taken at the second attempt is sent again",
        "delivery/sender.py",
        """\
                    self.taken += 1
                    return
""",
        """\
                    self.taken += 1
                    if pause == FIRST_PAUSE:
                        return
""",
    ),
    Planted(
        "A process has died of an item whose job was cancelled: the item that is left counts as guilty",
        "calls/slots.py",
        "deaths = attempt.deaths + 1 if len(items) == len(attempt.items) else 1",
        "deaths = attempt.deaths + 1",
    ),
]
