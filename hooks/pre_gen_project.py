"""Refuse an answer that would not work, in one line that says what would."""

import json
import re
import sys
import unicodedata

# Answers are data: in a plain string literal, a quote in an answer would end the string and run what follows.
answers = json.loads(r"""
{{ cookiecutter | tojson }}
""")

SLUG = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
HOST = r"[a-z0-9]+(-+[a-z0-9]+)*(\.[a-z0-9]+(-+[a-z0-9]+)*)*(:[0-9]+)?"
IMAGE = rf"({HOST}/)?{NAME}(/{NAME})*"


def one_line(text: str, most: int) -> bool:
    """Whether ``text`` is neither blank, nor longer than ``most`` characters, nor more than one line."""
    controls = any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)
    return bool(text.strip()) and len(text) <= most and not controls


def complaint() -> str | None:
    """Return what is wrong with the answers, or None."""
    if not one_line(answers["project_name"], 80):
        return "project_name: give a name of one line, at most 80 characters."
    # Cookiecutter has made the folder by now, and removes it when an answer is refused. For `..` that would be
    # where the user stands: `__folder` in cookiecutter.json, rendered before, has put `_` in place of such an answer.
    if not re.fullmatch(SLUG, answers["project_slug"]):
        return "project_slug: use a-z, 0-9 and hyphens, beginning with a letter, at most 63 characters."
    if not one_line(answers["description"], 300):
        return "description: give one line, at most 300 characters."
    if len(answers["image"]) > 255 or not re.fullmatch(IMAGE, answers["image"]):
        return "image: give registry/name in lower case, without a tag, such as docker.io/your-name/my-worker."
    return None


if found := complaint():
    sys.exit(found)
