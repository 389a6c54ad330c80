"""Puts one long list through many jobs, and so through all of an endpoint's workers; if stopped, it can continue."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aggregating_worker.client.client import Client
from aggregating_worker.client.envelopes import encode, failure
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.items import Items
from aggregating_worker.client.job import Job
from aggregating_worker.client.journal import Journal
from aggregating_worker.client.long_list import LongList, Progress
from aggregating_worker.client.map_batch import BatchedJobs
from aggregating_worker.client.map_jobs import Jobs
from aggregating_worker.client.shards import Frame
from aggregating_worker.sentence import counted

PATIENCE = 6 * 3_600.0
"""Seconds for which a batch may make no progress."""


@dataclass(frozen=True)
class Summary:
    """What became of the list: ``items`` and ``failed`` are of the whole list, ``jobs`` and ``seconds`` of this run."""

    items: int
    failed: int
    jobs: int
    seconds: float
    lines: str
    """Where the failed items are in the file: ``lines 3-40, 77``."""
    failures: Mapping[int, str]
    """Why, in a line, by the number of the item's line in the file."""


async def map_file(
    client: Client,
    source: BinaryIO,
    out: Path,
    *,
    job: Job,
    field: str = "items",
    shard: int = 200,
    in_flight: int = 8,
    batch: bool = False,
    patience: float = PATIENCE,
    files: Path | None = None,
    keep_journal: bool = False,
    again: bool = False,
    agreed: bool = False,
    progress: Progress = lambda *_: None,
) -> Summary:
    """Put the items in ``source`` (JSON Lines) through the endpoint and write their envelopes to ``out``, in order.

    ``job`` is a job without its items, which go into it as ``field``, at most ``shard`` of them; ``in_flight`` jobs are
    submitted at once. With ``batch`` the jobs are requests of Batch Jobs; a batch that makes no progress for
    ``patience`` seconds is cancelled. The files of results go into the folder ``files``, if one is given.

    What is done is kept in a journal beside ``out``, by the content of items. If a run ends early, for whatever reason,
    the next call with the same arguments continues it, and waits for the jobs that the endpoint still has; lines may be
    mended, added and moved in between. At the end the journal is removed, unless an item failed or ``keep_journal``.

    An item's failure counts as its result, until its line is another. With ``again``, what failed is asked for again,
    and what is in jobs of which it is not known whether the endpoint has them. Raises ``CallFailed`` if there are such
    jobs, if the job or the journal cannot be used, a call fails, an answer cannot be read, or the endpoint accepts
    nothing of the list; ``JobFailed`` if a job is cancelled, or lost again and again; and ``BegunOtherwise`` if the
    journal was begun with another endpoint or other options, unless it is ``agreed`` that it goes on with these.
    """
    began = time.monotonic()
    frame = Frame(job, field)
    items = Items(source, frame.room, placed=files is not None)  # in the names of files are places
    with Journal(out, _begun(client, job, field, files, batch=batch), items, agreed=agreed) as journal:
        if journal.damaged:
            client.told(
                f"{counted(journal.damaged, 'line')} of {journal.path} cannot be read. What was there is asked for "
                "again, and paid for again if the endpoint does not have it any more."
            )
        if again:
            journal.ask_again()
        for index, fault in items.faults.items():
            journal.record(failure(index, "InvalidItem", fault))
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
        failures = journal.write_output(keep=keep_journal)
        lines = {items.line(index): why for index, why in failures.items()}
        seconds = time.monotonic() - began
        return Summary(len(items), len(failures), jobs.count, seconds, items.named(failures), lines)


async def cancel_batches(
    client: Client, source: BinaryIO, out: Path, *, job: Job, field: str = "items", files: Path | None = None
) -> int:
    """Cancel the batches that ``map_file`` left running when called with the same arguments; return their number.

    The results that they already have stay available to ``map_file``. Raises ``CallFailed``.
    """
    frame = Frame(job, field)
    items = Items(source, frame.room, placed=files is not None)
    journal = Journal(out, _begun(client, job, field, files, batch=True), items)
    if not journal.path.exists():
        return 0
    with journal:
        return await BatchedJobs(LongList(client, items, frame, journal, files, lambda *_: None), 1, 0).cancel()


def _begun(client: Client, job: Job, field: str, files: Path | None, *, batch: bool) -> dict[str, object]:
    """Return with what the list is done, as a user names it: what is left out has its default."""
    with_what = {
        "endpoint": client.endpoint_id,
        "--job": hashlib.sha256(encode(job)).hexdigest(),
        "--items-field": field if field != "items" else None,
        "--files": str(files) if files else None,
        "--batch": batch or None,
    }
    return {name: value for name, value in with_what.items() if value is not None}
