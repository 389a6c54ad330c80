"""The library's settings, wherever they are listed: in ``.env.example``, in the Hub's form, in ``docs/settings.md``.

``make settings`` runs it.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from aggregating_worker.settings import Settings

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "{{cookiecutter.project_slug}}"


def settings() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield each setting's variable, default (or ""), description in Markdown, and JSON Schema.

    The description is what stands below the field: a class that keeps it would cost each worker's start some time.
    """
    [read] = (each for each in ast.parse(inspect.getsource(Settings)).body if isinstance(each, ast.ClassDef))
    below = {
        ast.unparse(field.target): " ".join(inspect.cleandoc(ast.literal_eval(text.value)).replace("``", "`").split())
        for field, text in pairwise(read.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    for name, schema in Settings.model_json_schema()["properties"].items():
        default = json.dumps(schema["default"]) if schema.get("default") is not None else ""
        yield name.upper(), default, below[name], schema | schema.get("anyOf", [{}])[0]


def env() -> str:
    """Return all settings as comments for the shell: a copy of them changes nothing."""
    lines = [
        f"# {line}"
        for name, default, text, _ in settings()
        for line in [*textwrap.wrap(text.replace("`", ""), 116), f"{name}={default}"]
    ]
    return "\n".join(lines) + "\n"


def form() -> str:
    """Return all settings as inputs of the Hub's form, without defaults: those would win over ``task.py``."""
    lines = []
    for name, default, text, schema in settings():
        unset = f". Unset: {default}, or what task.py says." if default else ""
        entry = {
            "name": name.replace("_", " ").capitalize(),
            "type": {"integer": "number"}.get(schema["type"], schema["type"]),
            "description": text.replace("`", "").removesuffix("." if unset else "") + unset,
        }
        if entry["type"] == "number":
            entry["min"] = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        if entry["type"] == "boolean":
            entry |= {"trueValue": "true", "falseValue": "false"}
        lines.append("      " + json.dumps({"key": name, "input": {**entry, "advanced": True}}, ensure_ascii=False))
    return ",\n".join(lines)


def table() -> str:
    """Return all settings as rows in Markdown."""
    return "\n".join(f"| `{name}` | {default or '–'} | {text} |" for name, default, text, _ in settings())


PLACES = (
    (WORKER / ".env.example", r"(?<=\n\n).*?\n(?=\n)", env),
    (WORKER / ".runpod" / "hub.json", r"(?<=\{#- make settings writes these #\}\n).*?(?=\n    \])", form),
    (ROOT / "docs" / "settings.md", r"(?<=\n\|---\|---\|---\|\n).*?(?=\n\n)", table),
)
"""Each file, where in it the settings stand, and how."""


def written() -> dict[Path, str]:
    """Return each file's text with the settings as they are."""
    texts = {}
    for file, where, what in PLACES:
        head, tail = re.split(where, file.read_text(encoding="utf-8"), maxsplit=1, flags=re.DOTALL)
        texts[file] = head + what() + tail
    return texts


if __name__ == "__main__":
    for file, text in written().items():
        file.write_text(text, encoding="utf-8")
