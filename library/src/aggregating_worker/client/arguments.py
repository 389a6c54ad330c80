"""The client's command line."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from aggregating_worker.client.map import PATIENCE


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="aggregating-worker",
        description="Call the endpoint RUNPOD_ENDPOINT_ID with the key RUNPOD_API_KEY, at RUNPOD_ENDPOINT_BASE_URL.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("run", "run one job with /run and print its envelopes once it has ended"),
        ("runsync", "run one job with /runsync and print its envelopes"),
        ("stream", "run one job with /run and print each envelope as it is ready"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("file", metavar="FILE.json", help='a job, {"input": {"items": […]}}; -: standard input')
    what = "also print what items yield while they run; on a terminal, this is always on"
    commands.choices["stream"].add_argument("--parts", action="store_true", help=what)
    what = "put a long list through many jobs; the same command continues it, asking only for lines that are new"
    command = commands.add_parser("map", help=what, description=what)
    command.add_argument("items", metavar="ITEMS.jsonl", help="one item per line, any JSON value; -: standard input")
    command.add_argument("--out", required=True, metavar="RESULTS.jsonl", help="one envelope per line, in input order")
    command.add_argument("--job", metavar="FILE.json", help="a job without items: the options and the policy")
    what = "the task's own name for the list of items (default: items)"
    command.add_argument("--items-field", default="items", metavar="NAME", help=what)
    command.add_argument("--shard", type=_count(10_000), default=200, help="most items in a job (default: 200)")
    command.add_argument("--in-flight", type=_count(100), default=8, help="most jobs submitted at once (default: 8)")
    command.add_argument(
        "--batch", action="store_true", help="use Batch Jobs, which may wait longer and have workers of their own"
    )
    what = "cancel a batch that makes no progress for TIME: 90s, 30m or 6h (default: 6h)"
    command.add_argument("--patience", type=_seconds, default=PATIENCE, metavar="TIME", help=what)
    command.add_argument(
        "--cancel", action="store_true", help="cancel the batches that an earlier --batch left running"
    )
    what = "send again lines that failed, and those that may be in a job whose submit was lost, which may pay twice"
    command.add_argument("--again", action="store_true", help=what)
    what = "keep RESULTS.jsonl.journal though no line has failed"
    command.add_argument("--keep-journal", action="store_true", help=what)
    for command in commands.choices.values():
        what = "save each file of a result as DIR/INDEX-N.EXT, and put that path into the result"
        command.add_argument("--files", type=Path, metavar="DIR", help=what)
        where = command.add_mutually_exclusive_group()
        where.add_argument("--endpoint", metavar="ID", help="the endpoint's id (default: RUNPOD_ENDPOINT_ID)")
        what = "call the local endpoint at its usual address, whatever the environment says"
        where.add_argument("--local", action="store_true", help=what)
    return parser


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m or 6h")
    return float(match[1]) * {"m": 60, "h": 3_600}.get(match[2], 1)


def _count(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
        return int(text)

    return read
