"""One long list over many jobs, and so over all of an endpoint's workers; stopped anywhere, it goes on from there."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aggregating_worker.client.client import Client
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.items import Items
from aggregating_worker.client.job import Job
from aggregating_worker.client.journal import Journal
from aggregating_worker.client.map_batch import BatchedJobs
from aggregating_worker.client.map_jobs import Jobs
from aggregating_worker.client.shards import Frame
from aggregating_worker.client.work import Progress, Work

PATIENCE = 6 * 3_600.0
"""Seconds for which a batch may stand still."""


@dataclass(frozen=True)
class Summary:
    """What became of the list: ``items`` and ``failed`` are the whole list's, the rest is this run's.

    ``damaged`` lines of the journal could not be read: their items were asked for again.
    """

    items: int
    failed: int
    jobs: int
    seconds: float
    damaged: int


async def map_file(
    client: Client,
    source: BinaryIO,
    out: Path,
    *,
    job: Job,
    shard: int = 200,
    in_flight: int = 8,
    batch: bool = False,
    patience: float = PATIENCE,
    files: Path | None = None,
    keep_journal: bool = False,
    progress: Progress = lambda *_: None,
) -> Summary:
    """Put the items in ``source`` (JSON Lines) through the endpoint and write their envelopes to ``out``, in order.

    ``job`` is what each job asks for beside its items, at most ``shard`` of them; ``in_flight`` jobs are waited for at
    once. With ``batch`` they are requests of Batch Jobs; a batch that stands still for ``patience`` seconds is given
    up. The files of results go into the folder ``files``, if one is given. What is done is in the journal beside
    ``out``: called again after whatever end, this goes on from there, and waits for the jobs that are still known. When
    all is done the journal goes, unless ``keep_journal``. An item's failure is a result. Raises ``CallFailed`` if the
    list or the journal cannot be used, a call fails or an answer cannot be read, ``JobFailed`` if a job fails again and
    again.
    """
    began = time.monotonic()
    frame = Frame(job)
    items = Items(source, frame.room)
    with Journal(out, _header(items, frame, files, batch=batch), len(items)) as journal:
        work = Work(client, items, frame, journal, files, progress)
        jobs = BatchedJobs(work, shard, patience) if batch else Jobs(work, shard)
        try:
            await (jobs.run() if isinstance(jobs, BatchedJobs) else jobs.run(in_flight))
        except CallFailed as fault:
            fault.add_note(
                f"What is done is kept in {journal.path}: once that is mended, the same command goes on from there."
            )
            raise
        journal.write_output(keep=keep_journal)
        return Summary(len(items), journal.failed, jobs.count, time.monotonic() - began, journal.damaged)


async def cancel_batches(client: Client, source: BinaryIO, out: Path, *, job: Job, files: Path | None = None) -> int:
    """Cancel the batches that ``map_file`` left running, with the same arguments; return how many those are.

    What they have done is still there for it. Raises ``CallFailed``.
    """
    frame = Frame(job)
    items = Items(source, frame.room)
    journal = Journal(out, _header(items, frame, files, batch=True), len(items))
    if not journal.path.exists():
        return 0
    with journal:
        return await BatchedJobs(Work(client, items, frame, journal, files, lambda *_: None), 1, 0).cancel()


def _header(items: Items, frame: Frame, files: Path | None, *, batch: bool) -> dict[str, object]:
    """Return what a journal is of: to go on with anything else would mix results."""
    of: dict[str, object] = {"journal": 1, "items": items.digest, "job": hashlib.sha256(frame.body([])).hexdigest()}
    return of | ({"files": str(files)} if files else {}) | ({"batch": True} if batch else {})
