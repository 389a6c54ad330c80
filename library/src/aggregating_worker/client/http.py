"""HTTP requests: retried while the error may pass, with a limit on the bytes and the seconds of an answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

import httpx2
import stamina

from aggregating_worker.client.envelopes import parse
from aggregating_worker.sentence import counted, one_line

ATTEMPTS = 8
"""How often a call is tried: for about half a minute, three windows of the platform's rate limits."""
TOLD_AT = 4
"""The try, about two seconds after the first, at which it is said that there are more to come."""
LONGEST_WAIT = 15.0
"""Seconds between two attempts at most, unless the answer asks for more."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
GRACE = 120.0
"""Seconds that an answer may take, plus one for each ``SLOWEST`` bytes of it."""
SLOWEST = 100_000
MAX_ANSWER = 256 * 2**20
"""Bytes of JSON that are read into memory at most; the platform's limit for a response is 20 MB."""
MAX_REFUSAL = 100_000
"""Bytes that are read of an error's body."""
WORDS = 5.0
"""Seconds that an error's body may take."""

T = TypeVar("T")


class CallFailed(Exception):
    """A call failed. The message is a sentence for the user; ``status`` is the HTTP status, if there was an answer.

    ``untaken``: the other side surely did nothing of what was asked.
    """

    def __init__(self, message: str, status: int | None = None, *, untaken: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.untaken = untaken


class JobUnknown(CallFailed):
    """A job was sent, and nothing says whether the platform took it: it may be queued, under an id nobody knows.

    It was not sent again, and whoever sends it again may pay for it twice.
    """


class AnswerTooLarge(CallFailed):
    """An answer has more bytes than are read."""


class Http:
    """Makes requests through ``http``, which ``close`` closes too. Every call may raise ``CallFailed``.

    No message has ``secret`` in it. ``hints`` says what to do about a status. Each attempt first awaits its ``turn``.
    ``told`` gets a sentence while no call succeeds.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        *,
        secret: str = "",
        hints: Mapping[int, str] | None = None,
        turn: Callable[[], Awaitable[None]] | None = None,
        told: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._http = http
        self._secret = secret
        self._hints = hints or {}
        self._turn = turn
        self._told = told
        self._has_told = False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def json(self, method: str, url: str, body: bytes = b"", held: float = 0, *, once: bool = False) -> Any:
        """Return the JSON value in the answer, which may be held back for ``held`` seconds.

        With ``once``, the request is sent again only where the other side surely did not take it.
        """

        async def attempt() -> Any:
            content = bytearray()
            await self._receive(method, url, body, held, MAX_ANSWER, content.extend)
            try:
                return parse(bytes(content))
            except ValueError as error:  # cut short, or a proxy's page
                raise httpx2.DecodingError(f"it is not JSON: {error}") from None

        return await self._insist(url, attempt, once=once)

    async def tell(self, method: str, url: str, body: bytes = b"") -> None:
        """Make a call of whose answer only the status matters."""
        await self._insist(url, lambda: self._receive(method, url, body, 0, MAX_ANSWER, lambda _: None))

    async def save(self, url: str, size: int, file: BinaryIO) -> None:
        """Write the ``size`` bytes at ``url`` to ``file``; any other number of bytes is an error."""

        async def attempt() -> None:
            file.seek(0)
            file.truncate()
            await self._receive("GET", url, b"", 0, size, file.write)
            if file.tell() != size:
                raise httpx2.DecodingError(f"it has {file.tell()} of {counted(size, 'byte')}")

        await self._insist(url, attempt)

    async def _insist(self, url: str, attempt: Callable[[], Awaitable[T]], *, once: bool = False) -> T:
        address = web_address(url)
        if address is None:
            raise CallFailed(f"{one_line(url)} is not a web address.", untaken=True)
        try:
            async for each in stamina.retry_context(
                _may_pass_untaken if once else _may_pass,
                ATTEMPTS,
                timeout=None,
                wait_initial=0.25,
                wait_max=LONGEST_WAIT,
                wait_jitter=0.25,
            ):
                if each.num == TOLD_AT and not self._has_told:
                    self._has_told = True
                    self._told(f"No usable answer from {address.host} yet: it is tried again.")
                with each:
                    answer = await attempt()
                    self._has_told = False
        except httpx2.HTTPStatusError as error:
            raise CallFailed(self._refusal(error), error.response.status_code, untaken=_untaken(error)) from None
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            reason = one_line(str(error)) or type(error).__name__
            raise CallFailed(f"No usable answer from {address.host}: {reason}.", untaken=_untaken(error)) from None
        return answer

    async def _receive(
        self, method: str, url: str, body: bytes, held: float, most: int, take: Callable[[bytes], object]
    ) -> None:
        """Pass each piece of an answer's body to ``take``: ``most`` bytes, or ``AnswerTooLarge`` is raised."""
        if self._turn:
            await self._turn()
        until = asyncio.get_running_loop().time() + held + GRACE
        timeout = httpx2.Timeout(TIMEOUT, read=held + TIMEOUT, pool=None)
        try:
            async with (
                asyncio.timeout_at(until) as limit,
                self._http.stream(method, url, content=body, timeout=timeout) as response,
            ):
                if not response.is_success:
                    raise httpx2.HTTPStatusError(await _words(response), request=response.request, response=response)
                taken = 0
                async for piece in response.aiter_bytes():  # of 1 MiB at most, however well they were compressed
                    taken += len(piece)
                    if taken > most:
                        said = f"{response.url.host} answered with more than {counted(most, 'byte')}"
                        raise AnswerTooLarge(f"{said}, which is too much.")
                    limit.reschedule(until + taken / SLOWEST)
                    take(piece)
        except TimeoutError:
            raise httpx2.ReadTimeout("it took too long") from None
        except (ValueError, ExceptionGroup):  # such as port 99999 in a redirect, which only the socket notices
            raise httpx2.InvalidURL("it redirects to something that is not a web address") from None

    def _refusal(self, error: httpx2.HTTPStatusError) -> str:
        """Return a sentence with the status and the other side's own words, if any, but without the secret."""
        try:
            said = parse(str(error).encode())
        except ValueError:  # a proxy's page
            said = None
        texts = [said.get(name) for name in ("error", "message", "detail", "title")] if isinstance(said, dict) else []
        reason = next((text for text in texts if isinstance(text, str)), error.response.reason_phrase)
        reason = one_line(reason.replace(self._secret, "…") if self._secret else reason)
        status = error.response.status_code
        return f"{error.request.url.host} answered {status}: {reason}.{self._hints.get(status, '')}"


async def _words(response: httpx2.Response) -> str:
    """Return the beginning of an error's body, if it comes soon: the status is known without it."""
    with suppress(httpx2.RequestError, TimeoutError):
        async with asyncio.timeout(WORDS):
            async for piece in response.aiter_bytes(MAX_REFUSAL):
                return piece.decode(errors="replace")
    return ""


def web_address(url: str) -> httpx2.URL | None:
    """Return ``url`` parsed if it is an http or https address, else None."""
    try:
        parsed = httpx2.URL(url)
        usable = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 0) in range(65_536)
        return parsed if usable else None
    except (httpx2.InvalidURL, ValueError):  # the latter for half of a surrogate pair
        return None


def _may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    lasting = httpx2.UnsupportedProtocol | httpx2.TooManyRedirects
    return isinstance(error, httpx2.RequestError) and not isinstance(error, lasting)


def _untaken(error: Exception) -> bool:
    """Whether the other side surely did not do what was asked: it said so, or could not be reached."""
    if isinstance(error, httpx2.HTTPStatusError):
        status = error.response.status_code
        return status == 503 or (status < 500 and status != 408)
    return isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError | httpx2.PoolTimeout)


def _may_pass_untaken(error: Exception) -> bool:
    return _may_pass(error) and _untaken(error)
