"""What went wrong, as a sentence that says what to do next and shows no secret."""

import json
import os
from collections.abc import Iterable
from itertools import groupby

import httpx

from aggregating_worker.sentence import KEYS, one_line

QUOTED = 5_000
"""Characters of an error that are looked at."""
LEGIBLE = 8
"""Letters in a row of a secret that give it away."""
LATER = "run the command again in a while"
ADVICE = {
    401: f"set RUNPOD_API_KEY to a key from {KEYS}, under API Keys",
    403: f"give the key read and write access at {KEYS}, under API Keys",
    429: LATER,
}


class Refused(Exception):
    """What went wrong, as a sentence for the person at the terminal."""


class Unanswered(Refused):
    """The request may have been carried out all the same."""


class Ambiguous(Refused):
    """Several endpoints have the name: perhaps for a moment only, until one of two first deployments is undone."""


def refusal(error: httpx.HTTPError) -> Refused:
    """Return what a request that has failed for good ends with."""
    if not isinstance(error, httpx.HTTPStatusError):
        sentence = f"{reason(error)}: {LATER}."
        return Refused(sentence) if isinstance(error, httpx.ConnectError) else Unanswered(sentence)
    status = error.response.status_code
    advice = ADVICE.get(status, LATER if status >= 500 else "")
    sentence = f"{reason(error)}: {advice}." if advice else f"{reason(error)}."
    return Unanswered(sentence) if status >= 500 else Refused(sentence)


def reason(error: BaseException) -> str:
    """Say what an error means, with the API's own detail (schema ``ErrorResponse``) where it has one."""
    if isinstance(error, httpx.HTTPStatusError):
        words = masked("; ".join(_detail(error.response))[:QUOTED], _variables(error.request))
        return f"Runpod answered {error.response.status_code} ({one_line(words)})"
    if isinstance(error, httpx.HTTPError):
        where = f"{error.request.url.scheme}://{error.request.url.netloc.decode('ascii')}"
        return one_line(f"No answer from {where} ({str(error).rstrip('.') or type(error).__name__})")
    return str(error).rstrip(".")


def without_key(text: str) -> str:
    """Return ``text`` as it may be printed, whoever put the key into it."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    return text.replace(key, "***") if key else text


def masked(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` with *** for what it has of ``secrets``: a short one, or eight letters in a row of one."""
    hidden = [False] * len(text)
    for secret in secrets:
        for form in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}:
            size = min(LEGIBLE, len(form))
            pieces = {form[place : place + size] for place in range(len(form) - size + 1)} - {""}
            for place in range(len(text)):
                if text[place : place + size] in pieces:
                    hidden[place : place + size] = [True] * size
    runs = groupby(zip(hidden, text, strict=True), key=lambda each: each[0])
    return "".join("***" if secret else "".join(letter for _, letter in run) for secret, run in runs)


def _detail(response: httpx.Response) -> list[str]:
    try:
        problem = response.json()
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or problem.get("title") or response.reason_phrase or "no reason given"
    faults = problem.get("errors") or []
    return [str(detail).rstrip("."), *map(str, faults if isinstance(faults, list) else [faults])]


def _variables(request: httpx.Request) -> list[str]:
    """Return the values of the variables in a request, which an answer may quote; nobody typed some of them."""
    return [*json.loads(request.content or b"{}").get("env", {}).values()]
