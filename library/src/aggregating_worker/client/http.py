"""HTTP requests: retried while the error may pass, with a limit on the bytes and the seconds of an answer."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, TypeVar

import httpx
import stamina

from aggregating_worker.client.envelopes import parse
from aggregating_worker.sentence import counted, one_line

ATTEMPTS = 8
"""How often a call is tried: for about half a minute, three windows of the platform's rate limits."""
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

T = TypeVar("T")


class CallFailed(Exception):
    """A call failed. The message is a sentence for the user; ``status`` is the HTTP status, if there was an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class JobUnknown(CallFailed):
    """The answer to a submit was lost: it is not known whether the platform has the job."""


class AnswerTooLarge(CallFailed):
    """An answer has more bytes than are read."""


class Http:
    """Makes requests through ``http``, which ``close`` closes too. Every call may raise ``CallFailed``.

    No message has ``secret`` in it. ``hints`` says what to do about a status. At most ``redirects`` redirects are
    followed.
    """

    def __init__(
        self, http: httpx.AsyncClient, *, secret: str = "", hints: Mapping[int, str] | None = None, redirects: int = 0
    ) -> None:
        # Not every codec that is installed: a few kB of some become gigabytes before the bytes can be counted.
        http.headers["Accept-Encoding"] = "gzip"
        http.timeout = httpx.Timeout(TIMEOUT, pool=None)
        self._http = http
        self._secret = secret
        self._hints = hints or {}
        self._redirects = redirects

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def json(self, method: str, url: str, body: bytes = b"", held: float = 0) -> Any:
        """Return the JSON value in the answer, which may be held back for ``held`` seconds."""

        async def attempt() -> Any:
            content = bytearray()
            await self._receive(method, url, body, held, MAX_ANSWER, content.extend)
            try:
                return parse(bytes(content))
            except ValueError as error:  # cut short, or a proxy's page
                raise httpx.DecodingError(f"it is not JSON: {error}") from None

        return await self._insist(url, attempt)

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
                raise httpx.DecodingError(f"it has {file.tell()} of {counted(size, 'byte')}")

        await self._insist(url, attempt)

    async def _insist(self, url: str, attempt: Callable[[], Awaitable[T]]) -> T:
        address = web_address(url)
        if address is None:
            raise CallFailed(f"{one_line(url)} is not a web address.")
        try:
            async for each in stamina.retry_context(
                _may_pass, ATTEMPTS, timeout=None, wait_initial=0.25, wait_max=LONGEST_WAIT, wait_jitter=0.25
            ):
                with each:
                    answer = await attempt()
        except httpx.HTTPStatusError as error:
            raise CallFailed(self._refusal(error), error.response.status_code) from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            reason = one_line(str(error)) or type(error).__name__
            raise CallFailed(f"No usable answer from {address.host}: {reason}.") from None
        return answer

    async def _receive(
        self, method: str, url: str, body: bytes, held: float, most: int, take: Callable[[bytes], object]
    ) -> None:
        """Pass each piece of an answer's body to ``take``: ``most`` bytes, or ``AnswerTooLarge`` is raised."""
        until = asyncio.get_running_loop().time() + held + GRACE
        timeout = httpx.Timeout(TIMEOUT, read=held + TIMEOUT, pool=None)
        try:
            request = self._http.build_request(method, url, content=body, timeout=timeout)
            async with asyncio.timeout_at(until) as limit, self._answer(request) as response:
                refused, said, taken = not response.is_success, bytearray(), 0
                if response.headers.get("Content-Encoding", "gzip") not in ("gzip", "identity"):
                    raise httpx.DecodingError("it is compressed in a way that was not asked for")
                async for piece in response.aiter_bytes():
                    taken += len(piece)
                    limit.reschedule(until + taken / SLOWEST)
                    if refused:
                        said += piece
                        if taken > MAX_REFUSAL:
                            break
                    elif taken > most:
                        allowed = counted(most, "byte")
                        raise AnswerTooLarge(
                            f"{request.url.host} answered with more than {allowed}, which is too much."
                        )
                    else:
                        take(piece)
                if refused:
                    words = said.decode(errors="replace")
                    raise httpx.HTTPStatusError(words, request=response.request, response=response)
        except TimeoutError:
            raise httpx.ReadTimeout("it took too long") from None
        except (ValueError, ExceptionGroup):  # such as port 99999 in a redirect, which only the socket notices
            raise httpx.InvalidURL("it redirects to something that is not a web address") from None

    @asynccontextmanager
    async def _answer(self, request: httpx.Request) -> AsyncGenerator[httpx.Response, None]:
        """Yield the answer to ``request`` with its body unread. httpx would read the whole body of a redirect."""
        for left in reversed(range(self._redirects + 1)):
            response = await self._http.send(request, stream=True)
            try:
                if not left or response.next_request is None:
                    yield response
                    return
                request = response.next_request
            finally:
                await response.aclose()

    def _refusal(self, error: httpx.HTTPStatusError) -> str:
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


def web_address(url: str) -> httpx.URL | None:
    """Return ``url`` parsed if it is an http or https address, else None."""
    try:
        parsed = httpx.URL(url)
        usable = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 0) in range(65_536)
        return parsed if usable else None
    except (ValueError, httpx.InvalidURL):  # some hosts are found to be invalid only when they are read
        return None


def _may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx.RequestError) and not isinstance(error, httpx.UnsupportedProtocol)
