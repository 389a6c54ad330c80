"""``aggregating-worker run|runsync|stream|map``: call an endpoint from the command line."""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import stamina.instrumentation
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from aggregating_worker.client.arguments import parser
from aggregating_worker.client.client import Client
from aggregating_worker.client.envelopes import Envelope, encode, is_envelope, is_parts, parse
from aggregating_worker.client.files import shortened
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.job import AnotherWorker, Job, item_count
from aggregating_worker.client.journal import BegunOtherwise
from aggregating_worker.client.map import cancel_batches, map_file
from aggregating_worker.sentence import counted, one_line, printable

SUCCESS, SOME_FAILED, CALL_FAILED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
EXPLAINED = 10
"""Failed lines of a list whose failures are printed."""

SCREEN = Console(stderr=True)
"""Where the progress bar is, and above it what is told meanwhile."""

NOTE = 40
"""Characters of an item's progress that the bar shows."""

LOCAL = "http://127.0.0.1:8000/v2"
"""Where ``aggregating-worker serve`` serves, if it is not told another port."""

Show = Callable[[int, int | None, str], None]


def main(argv: list[str]) -> None:
    """Do what the command line says.

    Exit status 0: all items succeeded; 1: some failed; 2: the job or the call failed, with a sentence that says why.
    As in a shell, 130: interrupted; 141: the program that read the results has closed the pipe.
    """
    arguments = parser().parse_args(argv)
    stamina.instrumentation.set_on_retry_hooks(())  # which would write every retry to standard error
    status = CALL_FAILED
    try:
        status = _map(arguments) if arguments.command == "map" else asyncio.run(_call(arguments))
    except CallFailed as error:
        print(error, *getattr(error, "__notes__", ()), file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
        status = PIPE_CLOSED
    except OSError as error:
        print(f"{error.filename or 'Could not write'}: {error.strerror}.", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"Interrupted. {_left_behind(arguments)}", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)


def _left_behind(arguments: argparse.Namespace) -> str:
    """Say what an interrupt has done to the jobs, and how to continue."""
    left = arguments.client.leaves_jobs if "client" in arguments else False
    if arguments.command != "map":
        return "The job may go on." if left or arguments.command == "runsync" else "The job was cancelled."
    if arguments.batch:
        return "The batches keep running. Run the same command to get their results, or with --cancel to cancel them."
    done = "Some jobs may go on" if left else "The running jobs were cancelled"
    return f"{done}. Run the same command to continue."


async def _call(arguments: argparse.Namespace) -> int:
    """Run one job and print its envelopes: ``stream`` each as it arrives, the others all at the end or none.

    The answer to a request in an older form, which has no ``items``, is printed as it came.
    """
    job = _read_job(arguments.file)
    streaming = arguments.command == "stream"
    kept: list[Envelope] = []
    done = failed = others = 0
    bar = sys.stderr.isatty() and not (streaming and sys.stdout.isatty())
    async with _client(arguments) as client:
        with _progress(bar) as show:
            show(0, item_count(job), "")

            def note(progress: list[Any]) -> None:
                show(done, item_count(job), _note(progress))

            try:
                async with aclosing(_arriving(client, job, arguments, note if bar else None)) as arriving:
                    async for each in arriving:
                        if not is_envelope(each):
                            others += 1
                            _print(each)
                            continue
                        done += 1
                        failed += not each["success"]
                        if streaming:
                            _print(each)
                        else:
                            kept.append(each)
                        show(done, item_count(job), "")
            except AnotherWorker as other:
                if item_count(job) is not None:
                    raise
                if not others:
                    _print(other.output)
    for envelope in kept:
        _print(envelope)
    return SOME_FAILED if failed else SUCCESS


def _note(progress: list[Any]) -> str:
    """Return for the bar what the latest item says of its progress."""
    match progress:
        case [*_, {"index": int(index), "value": value}]:
            return escape(f"(item {index}: {one_line(encode(value).decode())[:NOTE]})")
    return ""


async def _arriving(
    client: Client, job: Job, arguments: argparse.Namespace, progress: Callable[[list[Any]], object] | None
) -> AsyncGenerator[Any, None]:
    then = partial(client.save_files, folder=arguments.files) if arguments.files else None
    if arguments.command == "runsync":
        for envelope in await client.runsync(job, then=then):
            yield envelope
        return
    streaming = arguments.command == "stream"
    with_parts = arguments.parts or sys.stdout.isatty() if streaming else False
    async with aclosing(client.stream(job, parts=streaming, then=then, progress=progress)) as arriving:
        async for each in arriving:
            if with_parts or not is_parts(each):
                yield each


def _client(arguments: argparse.Namespace) -> Client:
    key = os.environ.get("RUNPOD_API_KEY") or "local"
    where = {"endpoint_id": "local", "api_key": key, "base_url": LOCAL} if arguments.local else {}
    try:
        client = arguments.client = Client(**{"endpoint_id": arguments.endpoint, **where}, told=_tell)
    except CallFailed as error:
        if not arguments.local:
            error.add_note("Or --local: it calls the endpoint of make serve.")
        raise
    return client


def _map(arguments: argparse.Namespace) -> int:
    """Map a list, and ask whoever is at the terminal before a journal goes on with something else."""
    try:
        return asyncio.run(_mapped(arguments, agreed=False))
    except BegunOtherwise as other:
        asked = sys.stdin.isatty() and sys.stderr.isatty() and not arguments.cancel
        if not asked:
            other.add_note("Choose another --out, or run it in a terminal, where it asks.")
            raise
        print(f"{other} Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return CALL_FAILED
    return asyncio.run(_mapped(arguments, agreed=True))


async def _mapped(arguments: argparse.Namespace, *, agreed: bool) -> int:
    job = _read_job(arguments.job) if arguments.job else {"input": {}}
    out = Path(arguments.out)
    async with _client(arguments) as client:
        with _opened(arguments.items) as items, _progress(sys.stderr.isatty()) as show:
            if arguments.cancel:
                cancelled = await cancel_batches(
                    client, items, out, job=job, field=arguments.items_field, files=arguments.files
                )
                print(f"Batches cancelled: {cancelled}. What they have done is kept: to continue, leave out --cancel.")
                return SUCCESS
            summary = await map_file(
                client,
                items,
                out,
                job=job,
                field=arguments.items_field,
                shard=arguments.shard,
                in_flight=arguments.in_flight,
                batch=arguments.batch,
                patience=arguments.patience,
                files=arguments.files,
                keep_journal=arguments.keep_journal,
                again=arguments.again,
                agreed=agreed,
                progress=show,
            )
    total, jobs = counted(summary.items, "item"), counted(summary.jobs, "job")
    print(f"{total}, {summary.failed} failed, {jobs}, {summary.seconds:.1f} s: {arguments.out}")
    if not summary.failed:
        return SUCCESS
    for line, why in islice(summary.failures.items(), EXPLAINED):
        print(f"Line {line}: {why}.", file=sys.stderr)
    what = "it asks for lines that have changed only, or with --again for all that failed"
    print(f"Failed: {summary.lines}. Mend what failed and run the same command: {what}.", file=sys.stderr)
    return SOME_FAILED


def _print(each: Any) -> None:
    shown = shortened(each) if is_envelope(each) and sys.stdout.isatty() else each
    sys.stdout.buffer.write(printable(encode(shown).decode()).encode() + b"\n")  # the same JSON
    sys.stdout.buffer.flush()


def _tell(sentence: str) -> None:
    SCREEN.print(sentence, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(shown: bool) -> Iterator[Show]:
    """Show a progress bar on standard error; the yielded function sets the items done, their total and a note."""
    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]} {task.description}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        *columns, *times, console=SCREEN, disable=not shown, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task("", total=None, unit="items")

        def show(done: int, items: int | None, note: str) -> None:
            unit = "item" if items == 1 else "items"
            bar.update(task, completed=done, total=items, unit=unit, description=note or None)

        yield show


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """Open a file, or for ``-`` a copy of standard input, because the items are read twice."""
    if name != "-":
        with Path(name).open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.seek(0)
        yield copy


def _read_job(name: str) -> Job:
    content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        job = parse(content)
    except ValueError as error:
        raise CallFailed(f"The job in {name} is not JSON: {error}.") from None
    if not isinstance(job, dict) or "input" not in job:
        raise CallFailed(f'The job in {name} should be an object with an input: {{"input": {{"items": […]}}}}.')
    return job
