"""Puts one long list through many jobs, and so through all of an endpoint's workers; if stopped, it can continue."""

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
from aggregating_worker.client.long_list import LongList, Progress
from aggregating_worker.client.map_batch import BatchedJobs
from aggregating_worker.client.map_jobs import Jobs
from aggregating_worker.client.shards import Frame

PATIENCE = 6 * 3_600.0
"""Seconds for which a batch may make no progress."""


@dataclass(frozen=True)
class Summary:
    """What became of the list: ``items`` and ``failed`` are of the whole list, ``jobs`` and ``seconds`` of this run."""

    items: int
    failed: int
    jobs: int
    seconds: float


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

    ``job`` is a job without its items, of which each job gets at most ``shard``; ``in_flight`` jobs are submitted at
    once. With ``batch`` the jobs are requests of Batch Jobs; a batch that makes no progress for ``patience`` seconds is
    cancelled. The files of results go into the folder ``files``, if one is given.

    What is done is kept in a journal beside ``out``. If a run ends early, for whatever reason, the next call with the
    same arguments continues it, and waits for the jobs that the endpoint still has. At the end the journal is removed,
    unless ``keep_journal``.

    An item's failure counts as its result. Raises ``CallFailed`` if the list or the journal cannot be used, a call
    fails or an answer cannot be read, ``JobFailed`` if a job fails again and again.
    """
    began = time.monotonic()
    frame = Frame(job)
    items = Items(source, frame.room)
    with Journal(out, _header(items, frame, files, batch=batch), len(items)) as journal:
        long_list = LongList(client, items, frame, journal, files, progress)
        jobs: Jobs | BatchedJobs
        jobs = BatchedJobs(long_list, shard, patience) if batch else Jobs(long_list, shard, in_flight)
        try:
            await jobs.run()
        except CallFailed as error:
            error.add_note(
                f"What is done is kept in {journal.path}: once the cause is fixed, run the same command to continue."
            )
            raise
        journal.write_output(keep=keep_journal)
        return Summary(len(items), journal.failed, jobs.count, time.monotonic() - began)


async def cancel_batches(client: Client, source: BinaryIO, out: Path, *, job: Job, files: Path | None = None) -> int:
    """Cancel the batches that ``map_file`` left running when called with the same arguments; return their number.

    The results that they already have stay available to ``map_file``. Raises ``CallFailed``.
    """
    frame = Frame(job)
    items = Items(source, frame.room)
    journal = Journal(out, _header(items, frame, files, batch=True), len(items))
    if not journal.path.exists():
        return 0
    with journal:
        return await BatchedJobs(LongList(client, items, frame, journal, files, lambda *_: None), 1, 0).cancel()


def _header(items: Items, frame: Frame, files: Path | None, *, batch: bool) -> dict[str, object]:
    """Return the journal's first line: a run with another header must not continue it, which would mix results."""
    of: dict[str, object] = {"journal": 1, "items": items.digest, "job": hashlib.sha256(frame.body([])).hexdigest()}
    return of | ({"files": str(files)} if files else {}) | ({"batch": True} if batch else {})
