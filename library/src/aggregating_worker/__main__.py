"""``aggregating-worker COMMAND``, or ``python -m aggregating_worker COMMAND``: the other side of the queue.

Each command is a module of its own with what it needs, which takes a while to import: one of them is, and no more.
"""

import os
import signal
import sys
from importlib import import_module
from typing import NamedTuple

from aggregating_worker.proxies import not_for_this_machine


class Command(NamedTuple):
    """The module whose ``main`` does it, the extra that brings what it needs, and what it does."""

    module: str
    extra: str
    what: str


COMMANDS = {
    "demo": Command("local.demo", "local", "the job in test_input.json, streamed by a worker in its production loop"),
    "serve": Command("local.serve", "local", "a local endpoint for the worker here, with a page for the browser"),
    "run": Command("client.command", "client", "run one job with /run and print its envelopes once it has ended"),
    "runsync": Command("client.command", "client", "run one job with /runsync and print its envelopes"),
    "stream": Command("client.command", "client", "run one job with /run and print each envelope as it is ready"),
    "map": Command("client.command", "client", "put a long list through many jobs"),
    "schema": Command("schema", "", "print the JSON Schemas of a job's input and of an envelope"),
    "deploy": Command("deploy.command", "deploy", "put an image on a Runpod endpoint, new or updated"),
    "hub": Command("deploy.hub", "deploy", "have the Runpod Hub test the job in test_input.json, and check its files"),
}
USAGE = "usage: aggregating-worker COMMAND …, each with --help\n\n" + "\n".join(
    f"  {name:8} {command.what}" for name, command in COMMANDS.items()
)


def main() -> None:
    """Do what the command line says; status 2, with a sentence, if it says nothing that can be done."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print(USAGE)
        return
    if name not in COMMANDS:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    not_for_this_machine()
    command = COMMANDS[name]
    interruptible = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # as after nohup
    if interruptible:  # while modules are imported, an exception would be a traceback
        signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"Stopped.\n"), os._exit(130)))
    try:
        module = import_module(f"aggregating_worker.{command.module}")
    except ModuleNotFoundError as missing:
        sys.exit(f"There is no {missing.name} here: pip install 'aggregating-worker[{command.extra}]' brings it.")
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    module.main(sys.argv[1:])


if __name__ == "__main__":
    main()
