"""The sources of positions: Alpaca, a URL, a file, or the service that runs on this machine."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio
import anyio.to_thread
import attrs
import msgspec

from mdservice.client.http import NoAnswer, fetch
from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position, default_multiplier
from mdservice.observability.masking import mask_url, quoted
from mdservice.positions.parse import MOST_BYTES, NotJson, parse_positions
from mdservice.runtime.network import HttpAnswer, HttpClient, HttpFailed
from mdservice.settings.parsers import parse_url

__all__ = [
    "ALPACA",
    "CHECK_ALPACA",
    "FETCH_LIMIT_S",
    "NO_CONTENT",
    "OK",
    "AlpacaPositions",
    "FileAbsent",
    "FilePositions",
    "HttpPositions",
    "PositionSource",
    "ServicePositions",
    "Threads",
    "open_source",
    "read_answer",
    "without_login",
]

FETCH_LIMIT_S: Final = 9.0
"""The limit of a fetch, whatever the other side does; callers can rely on 10 s."""
OK: Final = 200
NO_CONTENT: Final = 204
_REDIRECTS: Final = range(300, 400)
_SERVER_ERROR: Final = 500
_UNAVAILABLE: Final = 503
_WORTH_ANOTHER_TRY: Final = frozenset((408, 425, 429))

_CHECK: Final = "check that URL and the login it needs"
ALPACA: Final = "alpaca"
"""The name of the account's own positions, in settings."""
CHECK_ALPACA: Final = (
    "check ALPACA_API_KEY, ALPACA_SECRET_KEY and MDSERVICE_TRADING_URL: keys of a live account "
    "need https://api.alpaca.markets, those of a paper account https://paper-api.alpaca.markets"
)
_ASKED_FOR: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
_PARSED_AT_ONCE_BYTES: Final = 64 * 1024
"""Larger content is parsed in a thread, since it would block the event loop for milliseconds."""
_MOST_SHOWN: Final = 200

_FILE: Final = "file:"
_YOUNG_NS: Final = 2 * 10**9
"""A file changed within this time may change again within one tick of the file system's clock."""
_KINDS: Final = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}

_CALL: Final = "/api/v1/positions"
_CALL_TIMEOUT_S: Final = 3.0

_CONTRACTS_LIMIT_S: Final = 1.0
"""How long one fetch waits for contracts."""
_CONTRACTS_AT_ONCE: Final = 10
"""How many contracts one fetch asks for: with positions every 5 s, 120 a minute; Alpaca allows 200
calls a minute."""
_CONTRACTS_PAUSE_S: Final = 60.0
"""After a contract that did not come, the next try."""
_MOST_OF_CONTRACT: Final = 64 * 1024
_MOST_SHARES: Final = 10**6
_USUAL: Final = default_multiplier("us_option")

_MOST_HANGING: Final = 4
_LOOKS, _LOOK_S = 100, 0.02
_Result = TypeVar("_Result")


def open_source(
    text: str,
    *,
    trading_url: str,
    api_key: str | None,
    secret_key: str | None,
    http: HttpClient | None = None,
) -> PositionSource | None:
    """The source, before its first request; None for ``none``.

    Args:
        text: ``none``, ``alpaca``, an ``http(s)://`` URL or ``file:PATH``.
        trading_url: For ``alpaca``: ``https://paper-api.alpaca.markets``.
        api_key: Required by ``alpaca``; sent to no other source.
        secret_key: Likewise.
        http: A client shared with other parts; by default the source has one of its own.

    Raises:
        ConfigurationError: The text is none of these, a key is missing, or the environment has
            an unusable proxy or certificate file.
    """
    if text == "none":
        return None
    if text == ALPACA:
        return _of_alpaca(trading_url, api_key, secret_key, http)
    if text.startswith(_FILE):
        return FilePositions(text.removeprefix(_FILE))
    if "://" in text:
        return HttpPositions(text, http=http)
    raise ConfigurationError(
        f"MDSERVICE_POSITIONS: {quoted(text)} is not one of none, alpaca, an http:// or https:// "
        "URL, file:PATH"
    )


def _of_alpaca(
    trading_url: str, api_key: str | None, secret_key: str | None, http: HttpClient | None
) -> PositionSource:
    if not api_key or not secret_key:
        missing = "ALPACA_SECRET_KEY" if api_key else "ALPACA_API_KEY"
        raise ConfigurationError(
            f"positions of alpaca need a key and its secret: set {missing}, or take the positions "
            "from elsewhere with MDSERVICE_POSITIONS"
        )
    return AlpacaPositions(trading_url, api_key, secret_key, http)


class PositionSource(Protocol):
    """A source of positions, which can be asked repeatedly."""

    @property
    def address(self) -> str:
        """The address of the positions, for people; without any secret."""
        ...

    async def fetch(self) -> Sequence[Position]:
        """All present positions, in the source's order; the caller may change the result.

        Takes at most 10 s. Concurrent calls run one after the other. Cancelling leaves the
        source usable; the running request ends within seconds.

        Raises:
            PositionsUnavailable: The source cannot answer now; a retry may help.
            PositionsRefused: The source refused, or its answer holds no positions.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections. May be called again; a later fetch opens new ones."""
        ...


class HttpPositions:
    """A :class:`~mdservice.positions.sources.PositionSource` behind a URL, asked with GET.

    The URL is used as written, with or without a ``/`` at its end.

    Redirects are not followed, so headers and login stay with the URL's host.

    Args:
        url: ``http://`` or ``https://``; its login, if any, is sent as basic auth.
        headers: Sent with each request; never shown.
        http: A client shared with other parts and closed by its owner; by default its own.
        check: What the user should check after a refusal.

    Raises:
        ConfigurationError: It is no such URL, or the environment has an unusable proxy or
            certificate file for it.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        http: HttpClient | None = None,
        *,
        check: str = _CHECK,
    ) -> None:
        try:
            parse_url(url, "http", "https")
        except ValueError as exc:
            raise ConfigurationError(f"the URL of the positions {exc}") from None
        self.address = mask_url(url.strip())
        self._url, self._auth = without_login(url.strip())
        self._headers = {**_ASKED_FOR, **(headers or {})}
        self._own_http = HttpClient() if http is None else None
        self._http = http or self._own_http or HttpClient()
        self._http.prepare(self._url)
        self._check = check
        self._lock = anyio.Lock()

    async def fetch(self) -> list[Position]:
        """See :meth:`mdservice.positions.sources.PositionSource.fetch`."""
        limit_s = FETCH_LIMIT_S
        try:
            with anyio.fail_after(limit_s):
                async with self._lock:
                    answer = await self._get()
                read = partial(
                    read_answer,
                    answer.status,
                    answer.body,
                    self.address,
                    self._check,
                    location=answer.headers.get("Location"),
                )
                if len(answer.body) <= _PARSED_AT_ONCE_BYTES:
                    return read()
                return await anyio.to_thread.run_sync(read)  # noqa: TID251 - large answers
        except TimeoutError as exc:
            raise PositionsUnavailable(
                f"{self.address} does not answer within {limit_s:g} s"
            ) from exc

    async def aclose(self) -> None:
        """See :meth:`mdservice.positions.sources.PositionSource.aclose`."""
        if self._own_http is not None:
            await self._own_http.aclose()

    async def _get(self) -> HttpAnswer:
        try:
            return await self._http.get(
                self._url,
                headers=self._headers,
                auth=self._auth,
                timeout_s=FETCH_LIMIT_S,
                most_bytes=MOST_BYTES,
                compressed=False,
                ask_twice=True,
            )
        except HttpFailed as exc:
            if exc.kind == "url":
                raise PositionsRefused(f"{self.address} cannot be asked: {self._check}") from None
            if exc.kind == "encoding":
                raise PositionsRefused(
                    f"{self.address} answers in another encoding than the plain one asked for: "
                    "let it answer without compression"
                ) from exc
            if exc.kind == "size":
                raise PositionsRefused(f"{self.address} {exc}, too much for positions") from exc
            if exc.kind == "timeout":
                raise PositionsUnavailable(f"{self.address} {exc}") from exc
            raise PositionsUnavailable(f"{self.address} cannot be read: {exc}") from exc


class AlpacaPositions(HttpPositions):
    """A :class:`~mdservice.positions.sources.PositionSource` at Alpaca's trading API.

    Its rows have no multiplier. So it asks once for the contract of each option that is held, a few
    at a time and for a short time; until the answer, and without one, an option has 100 shares.

    Source: Alpaca, trading API, ``GET /v2/positions``, ``GET /v2/options/contracts/{symbol}``:
    "multiplier", "size" where that is missing.

    Args:
        trading_url: ``https://paper-api.alpaca.markets``.
        api_key: Never shown.
        secret_key: Never shown.
        http: A client shared with other parts and closed by its owner; by default its own.

    Raises:
        ConfigurationError: See :class:`~mdservice.positions.sources.HttpPositions`.
    """

    def __init__(
        self, trading_url: str, api_key: str, secret_key: str, http: HttpClient | None = None
    ) -> None:
        base = trading_url.rstrip("/")
        super().__init__(
            f"{base}/v2/positions",
            {"APCA-API-KEY-ID": api_key, "APCA-API-SECRET-KEY": secret_key},
            http,
            check=CHECK_ALPACA,
        )
        self._contracts_url = f"{base}/v2/options/contracts"
        self._multipliers: dict[str, Decimal] = {}
        """Those of the options that are held and were asked for."""
        self._ask_after_s = 0.0

    async def fetch(self) -> list[Position]:
        """See :meth:`mdservice.positions.sources.PositionSource.fetch`."""
        positions = await super().fetch()
        held = {
            position.symbol
            for position in positions
            if position.asset_class == "us_option" and position.problem is None
        }
        known = {symbol: self._multipliers[symbol] for symbol in held & self._multipliers.keys()}
        self._multipliers = known
        unknown = sorted(held - known.keys())
        if unknown and anyio.current_time() >= self._ask_after_s:
            with anyio.move_on_after(_CONTRACTS_LIMIT_S) as limit:
                async with anyio.create_task_group() as tasks:
                    for symbol in unknown[:_CONTRACTS_AT_ONCE]:
                        tasks.start_soon(self._ask_contract, symbol, known)
            if limit.cancelled_caught:
                self._ask_after_s = anyio.current_time() + _CONTRACTS_PAUSE_S
        return [
            attrs.evolve(position, multiplier=known[position.symbol])
            if position.symbol in known and position.multiplier == _USUAL
            else position
            for position in positions
        ]

    async def _ask_contract(self, symbol: str, known: dict[str, Decimal]) -> None:
        """Note the multiplier of an option; 100 if Alpaca does not know the contract."""
        try:
            answer = await self._http.get(
                f"{self._contracts_url}/{symbol}",
                headers=self._headers,
                timeout_s=_CONTRACTS_LIMIT_S,
                most_bytes=_MOST_OF_CONTRACT,
                compressed=False,
            )
        except HttpFailed:
            answer = None
        if answer is None or answer.status >= _SERVER_ERROR or answer.status in _WORTH_ANOTHER_TRY:
            self._ask_after_s = anyio.current_time() + _CONTRACTS_PAUSE_S
        else:
            known[symbol] = _multiplier(answer.body)


class _Contract(msgspec.Struct):
    multiplier: Decimal | None = None
    size: Decimal | None = None


def _multiplier(body: bytes) -> Decimal:
    """That of a contract; 100 if it has none that can be used, or is none."""
    try:
        contract = msgspec.json.decode(body, type=_Contract)
    except (ValueError, RecursionError):
        return _USUAL
    for found in (contract.multiplier, contract.size):
        if found is not None and found.is_finite() and 0 < found < _MOST_SHARES:
            return found
    return _USUAL


def read_answer(
    status: int, body: bytes, address: str, advice: str, location: str | None = None
) -> list[Position]:
    """The positions of an answer; an empty list for a 204.

    An empty body with status 200 is an error: a failing server may send that, and it must not
    look as if everything had been sold.

    Args:
        status: The HTTP status.
        body: Read only with status 200.
        address: The server's address, for errors.
        advice: What the user should check after a refusal: ``check the URL``.
        location: The target of a redirect, as the server wrote it.

    Raises:
        PositionsUnavailable: The server is busy or broken, or its answer ends too early.
        PositionsRefused: It refuses, or its answer holds no positions.
    """
    if status == OK:
        return parse_positions(body, address)
    if status == NO_CONTENT:
        return []
    if status >= _SERVER_ERROR or status in _WORTH_ANOTHER_TRY:
        raise PositionsUnavailable(f"{address} answers HTTP {status}; worth another try")
    if status in _REDIRECTS:
        target = f" to {_shown_target(location)}" if location else ""
        raise PositionsRefused(
            f"{address} answers HTTP {status}, a redirect{target}, which is not followed since it "
            f"could carry a login elsewhere: name the right URL, or {advice}"
        )
    raise PositionsRefused(f"{address} answers HTTP {status}: {advice}")


def _shown_target(location: str) -> str:
    """The target of a redirect without login and query values, also if it is only a path."""
    masked = mask_url(location)
    if masked == location:
        masked = location.partition("?")[0].partition("#")[0]
    return "".join(char if char.isprintable() else "\ufffd" for char in masked[:_MOST_SHOWN])


def without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """The URL in a form that may be logged, by httpx for instance, and its login."""
    parts = urlsplit(url)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    if parts.username is None:
        return bare, None
    return bare, (unquote(parts.username), unquote(parts.password or ""))


class FilePositions:
    """A :class:`~mdservice.positions.sources.PositionSource` in a file.

    The file is read in a thread, and again only after it has changed. To replace it, rename a new
    file over it; a half-written file is read again later.

    Args:
        path: ``~`` is the home folder.

    Raises:
        ConfigurationError: There is no such home folder.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._path = Path(path).expanduser()
        except RuntimeError:
            raise ConfigurationError(
                f"the file of the positions, {path}, is in a home folder that is not known"
            ) from None
        self.address = str(self._path)
        self._threads = Threads(self.address)
        self._lock = anyio.Lock()
        self._known: tuple[_Version, tuple[Position, ...]] | None = None

    async def fetch(self) -> list[Position]:
        """See :meth:`mdservice.positions.sources.PositionSource.fetch`.

        Raises:
            FileAbsent: There is no such file; a kind of PositionsUnavailable.
        """
        limit_s = FETCH_LIMIT_S
        try:
            with anyio.fail_after(limit_s):
                async with self._lock:
                    return await self._threads.run(self._read)
        except TimeoutError as exc:
            raise PositionsUnavailable(
                f"{self.address} cannot be read within {limit_s:g} s"
            ) from exc

    async def aclose(self) -> None:
        """See :meth:`mdservice.positions.sources.PositionSource.aclose`; nothing is kept open."""

    def _read(self) -> list[Position]:
        """Read the file; runs in a thread."""
        try:
            version = self._version(os.stat(self._path))  # noqa: PTH116 - of the same kind as fstat
            known = self._known
            if known is not None and known[0] == version:
                return list(known[1])
            version, content = self._content()
        except FileNotFoundError as exc:
            raise FileAbsent(f"there is no file {self.address}; waiting for it") from exc
        except (PermissionError, NotADirectoryError, ValueError) as exc:
            raise PositionsRefused(f"{self.address} cannot be read: {_reason(exc)}") from exc
        except OSError as exc:
            raise PositionsUnavailable(f"{self.address} cannot be read: {_reason(exc)}") from exc
        positions = self._parsed(content)
        self._known = (version, tuple(positions)) if version.is_settled else None
        return positions

    def _content(self) -> tuple[_Version, bytes]:
        # O_NONBLOCK, since a pipe may have taken the file's place and must not block.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(self._path, flags), "rb") as file:
            version = self._version(os.fstat(file.fileno()))
            content = file.read(MOST_BYTES + 1)
            if self._version(os.fstat(file.fileno())) != version:
                raise PositionsUnavailable(f"{self.address} is being written; waiting for the end")
        return version, content

    def _version(self, status: os.stat_result) -> _Version:
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
            raise PositionsRefused(
                f"{self.address} cannot be read: it is {kind}; name a file of JSON"
            )
        return _Version.of(status)

    def _parsed(self, content: bytes) -> list[Position]:
        try:
            return parse_positions(content, self.address)
        except NotJson as exc:
            raise PositionsUnavailable(
                f"{exc}; it is read again, in case it is being written"
            ) from exc


class FileAbsent(PositionsUnavailable):
    """There is no such file yet."""


@attrs.frozen
class _Version:
    """The values that distinguish two states of a file."""

    mtime_ns: int
    size: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Version:
        return cls(status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)

    @property
    def is_settled(self) -> bool:
        return time.time_ns() - self.mtime_ns > _YOUNG_NS  # noqa: TID251 - a file's clock


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)


class ServicePositions:
    """A :class:`~mdservice.positions.sources.PositionSource`: the positions of the service.

    It is the default where no source is configured. So before the service's first answer there
    are no positions, and :attr:`out_of_date` says why; after it, a missing answer is an error.

    Args:
        socket: The service's UNIX socket.

    Attributes:
        out_of_date: Why the last known positions may be outdated, or None.
        differences: What the service's source has corrected lately.
    """

    def __init__(self, socket: Path) -> None:
        self.address = f"the service at {socket}"
        self._socket = socket
        self._has_answered = False
        self.out_of_date: str | None = None
        self.differences: tuple[str, ...] = ()

    async def fetch(self) -> Sequence[Position]:
        """Ask the service over its UNIX socket; an empty list if it follows no positions.

        Raises:
            PositionsUnavailable: The service does not answer any more.
            PositionsRefused: It is an older service, or another program.
        """
        fetch = anyio.to_thread.run_sync  # noqa: TID251 - a UNIX socket
        return await fetch(self._fetch, abandon_on_cancel=True)

    def _fetch(self) -> Sequence[Position]:
        try:
            status, body = fetch(self._socket, "GET", _CALL, timeout_s=_CALL_TIMEOUT_S)
        except NoAnswer as exc:
            if not self._has_answered:
                self.out_of_date = str(exc)
                return ()
            raise PositionsUnavailable(str(exc)) from exc
        except ConfigurationError as exc:
            raise PositionsRefused(str(exc)) from exc
        if status == _UNAVAILABLE:
            raise PositionsUnavailable(f"{self.address}: {_decode_warnings(body).detail}")
        if status != OK:
            raise PositionsRefused(
                f"{self.address} returns no positions (HTTP {status}): update it"
            )
        found = parse_positions(body)
        self._has_answered = True
        said = _decode_warnings(body)
        self.out_of_date = "; ".join(said.warnings) or None
        self.differences = tuple(said.differences)
        return found

    async def aclose(self) -> None:
        """Nothing is kept open."""


class _Warnings(msgspec.Struct):
    warnings: list[str] = []
    differences: list[str] = []
    detail: str = "it does not know them"


_decode_warnings = msgspec.json.Decoder(_Warnings).decode


class Threads:
    """Runs calls in threads; a cancelled call runs on, and at most four of these may.

    Args:
        address: The source that the calls ask, for errors.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._running = 0
        # Its own limiter, so that calls that hang take no threads from other parts
        self._limiter = anyio.CapacityLimiter(_MOST_HANGING + 1)

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """Run the call; return or raise what it does. Cancelling does not wait for it.

        Raises:
            PositionsUnavailable: Too many earlier calls still hang.
        """
        for _ in range(_LOOKS):
            if self._running < _MOST_HANGING:
                break
            await anyio.sleep(_LOOK_S)  # calls that were just cancelled end soon
        else:
            raise PositionsUnavailable(
                f"{self._address}: {self._running} earlier attempts still hang; waiting for them"
            )

        def counted() -> _Result:
            with self._lock:
                self._running += 1
            try:
                return call()
            finally:
                with self._lock:
                    self._running -= 1

        return await anyio.to_thread.run_sync(  # noqa: TID251 - the caller's function
            counted, abandon_on_cancel=True, limiter=self._limiter
        )
