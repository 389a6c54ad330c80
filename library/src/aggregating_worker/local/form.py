"""The data for the page's form: the JSON schema of ``task.Input``, read in a process of its own, and an example."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 60.0
"""How long ``task.py`` may take to be imported."""
SCRIPT = """
import json, os
answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the task prints is no part of the answer
try:
    import task
    found = {"schema": task.Input.model_json_schema()}
except BaseException as error:
    found = {"why": f"task.Input cannot be read ({type(error).__name__}: {str(error)[:300]})."}
answer.write(json.dumps(found))
answer.flush()
os._exit(0)  # even if the task has started threads
"""


class Form:
    """The form for the input of the ``task.py`` in ``project``, which is imported with ``env`` when a page asks.

    ``project`` is None if the workers run another command. A failed import is tried again the next time.
    """

    def __init__(self, project: Path | None, env: Mapping[str, str]) -> None:
        self._project = project
        self._env = env
        self._schema: dict[str, Any] = {}
        self._reading = asyncio.Lock()
        self.edition = 0
        """How often the task has changed; the page asks again when it grows."""

    def reload(self) -> None:
        """Import the task again the next time a page asks."""
        self._schema = {}
        self.edition += 1

    async def read(self) -> dict[str, Any]:
        """Return an ``example`` of an input, and its ``schema`` or a sentence ``why`` there is none."""
        if self._project is None:
            return {"why": "The workers run a command of their own: there is no task.Input here.", "example": {}}
        async with self._reading:
            found = self._schema or await self._ask(self._project)
            if "schema" in found:
                self._schema = found
        return {**found, "example": _example(self._project)}

    async def _ask(self, project: Path) -> dict[str, Any]:
        with tempfile.TemporaryFile() as answer:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                SCRIPT,
                cwd=project,
                env={**os.environ, **self._env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=answer,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(SECONDS):
                    await process.wait()
                answer.seek(0)
                found: dict[str, Any] = json.load(answer)
            except TimeoutError:
                return {"why": f"Importing task.py took more than {SECONDS:.0f} s."}
            except ValueError:
                return {"why": "task.py ended the process that imported it."}
            else:
                return found
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all that the task has started
                await process.wait()


def _example(project: Path) -> Any:
    with suppress(OSError, ValueError, LookupError, TypeError):
        return json.loads((project / "test_input.json").read_text(encoding="utf-8"))["input"]
    return {}
