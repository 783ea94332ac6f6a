"""Alpaca's market-data REST API: what the stream has missed.

The answers are read with msgspec, times as nanoseconds: alpaca-py's models stop at
microseconds.

Source: Alpaca, "Historical quotes" and "Latest quotes"; start and end are inclusive, ``limit``
counts all symbols together, pages are sorted by symbol, then time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import msgspec

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feeds.alpaca.login import Credentials
from mdservice.feeds.alpaca.messages import Price, Size
from mdservice.feeds.subscriptions import chunks
from mdservice.model.quote import Quote
from mdservice.model.timestamps import format_ns, parse_rfc3339
from mdservice.urls import mask_url

if TYPE_CHECKING:
    import httpx

__all__ = ["AlpacaHistory"]

_SYMBOLS_PER_REQUEST = 200
_MOST_PER_PAGE = 10_000
_TIMEOUT_S = 10.0
_LONGEST_WAIT_S = 15.0
_PAUSE_S = 1.0
_MOST_TRIES = 5
_MOST_QUOTES = 200_000
"""What is kept in memory of one answer, all pages together."""
_OK, _TOO_MANY = 200, 429
_SERVER_ERROR = 500
_FEEDS_WITH_HISTORY = frozenset(("iex", "sip", "boats", "otc", "simulator"))
"""Unconfirmed for others: ``test``, ``overnight`` and ``delayed_sip`` seem to have none."""


class _RestQuote(msgspec.Struct, gc=False):
    """``{"t":"2026-11-20T15:51:44.2Z","bp":187.12,"bs":2,"ap":187.15,"as":3}`` and more."""

    t: str
    bp: Price
    bs: Size
    ap: Price
    ask_size: Size = msgspec.field(name="as")


class _Page(msgspec.Struct):
    quotes: dict[str, list[_RestQuote]] | None = None
    next_page_token: str | None = None


class _Latest(msgspec.Struct):
    quotes: dict[str, _RestQuote] | None = None


class _Refusal(msgspec.Struct):
    code: int | None = None
    message: str = ""


@attrs.define
class _RateLimit:
    """What the last answer said about the calls of this minute."""

    remaining: int | None = None
    reset_s: float | None = None

    def note(self, headers: Mapping[str, str]) -> None:
        remaining, reset = headers.get("X-RateLimit-Remaining"), headers.get("X-RateLimit-Reset")
        self.remaining = int(remaining) if remaining and remaining.isdecimal() else None
        self.reset_s = float(reset) if reset and reset.isdecimal() else None

    def exhausted(self, now_s: float) -> None:
        """A call was one too many; without a word on when, a second is waited."""
        self.remaining = 0
        if self.reset_s is None or self.reset_s <= now_s:
            self.reset_s = now_s + _PAUSE_S

    def wait_s(self, now_s: float) -> float:
        """How long until the next call may be made."""
        if self.remaining != 0 or self.reset_s is None:
            return 0.0
        return max(0.0, self.reset_s - now_s)


class AlpacaHistory:
    """History and latest quotes over HTTP.

    Args:
        base_url: ``https://data.alpaca.markets``.
        feed: Passed on every call; the API's own default would be sip.
        credentials: Sent as headers.
        clock: Stamps what is received.
        transport: In the place of the network, for tests.
    """

    def __init__(
        self,
        base_url: str,
        feed: str,
        credentials: Credentials,
        clock: Clock,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._feed = feed
        self._credentials = credentials
        self._clock = clock
        self._transport = transport
        self._limit = _RateLimit()

    async def quotes(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> Sequence[Quote]:
        """See :class:`mdservice.feeds.history.QuoteHistory`; reads every page."""
        if self._feed not in _FEEDS_WITH_HISTORY:
            raise HistoryRefused(f"the feed {self._feed} has no history")
        found: list[Quote] = []
        async with self._client() as client:
            for chunk in chunks(symbols, _SYMBOLS_PER_REQUEST):
                query = {
                    "symbols": ",".join(chunk),
                    "start": format_ns(start_ns),
                    "end": format_ns(end_ns),
                    "limit": str(_MOST_PER_PAGE),
                    "sort": "asc",
                }
                token: str | None = ""
                while token is not None:
                    paged = {**query, "page_token": token} if token else query
                    page = await self._get(client, "/v2/stocks/quotes", paged, _Page)
                    found += self._quotes(page)
                    if len(found) > _MOST_QUOTES:
                        raise HistoryRefused(f"more than {_MOST_QUOTES} quotes are too many")
                    token = page.next_page_token or None
        return found

    async def latest(self, symbols: Sequence[str]) -> Sequence[Quote]:
        """See :class:`mdservice.feeds.history.QuoteHistory`."""
        found: list[Quote] = []
        async with self._client() as client:
            for chunk in chunks(symbols, _SYMBOLS_PER_REQUEST):
                query = {"symbols": ",".join(chunk)}
                answer = await self._get(client, "/v2/stocks/quotes/latest", query, _Latest)
                received_ns = self._clock.utc_ns()
                found += [
                    _to_quote(symbol, quote, received_ns)
                    for symbol, quote in (answer.quotes or {}).items()
                ]
        return found

    def _quotes(self, page: _Page) -> list[Quote]:
        received_ns = self._clock.utc_ns()
        return [
            _to_quote(symbol, quote, received_ns)
            for symbol, quotes in (page.quotes or {}).items()
            for quote in quotes
        ]

    def _client(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(
            timeout=_TIMEOUT_S,
            transport=self._transport,
            headers=self._credentials.as_headers(),
        )

    async def _get(
        self, client: httpx.AsyncClient, path: str, query: Mapping[str, str], form: type[Any]
    ) -> Any:
        import httpx

        feed = {} if self._feed == "simulator" else {"feed": self._feed}
        for _ in range(_MOST_TRIES):
            await self._wait_for_room()
            try:
                answer = await client.get(f"{self._base_url}{path}", params={**query, **feed})
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise HistoryUnavailable(
                    f"no history from {mask_url(self._base_url)}: {exc or type(exc).__name__}"
                ) from exc
            self._limit.note(answer.headers)
            if answer.status_code != _TOO_MANY:
                return _read(answer, form)
            self._limit.exhausted(self._clock.utc_ns() / 1e9)
        raise HistoryUnavailable("the API's calls of this minute are used up, it says again")

    async def _wait_for_room(self) -> None:
        wait_s = self._limit.wait_s(self._clock.utc_ns() / 1e9)
        if wait_s > _LONGEST_WAIT_S:
            raise HistoryRefused(f"the API's calls of this minute are used up ({wait_s:.0f} s)")
        await anyio.sleep(wait_s)


def _to_quote(symbol: str, past: _RestQuote, received_ns: int) -> Quote:
    try:
        event_ns = parse_rfc3339(past.t)
    except ValueError as exc:
        raise HistoryUnavailable(f"history's answer cannot be read: {exc}") from exc
    return Quote(symbol, past.bp, past.ap, past.bs, past.ask_size, event_ns, received_ns)


def _read(answer: httpx.Response, form: type[Any]) -> Any:
    status = answer.status_code
    if status != _OK:
        refused = HistoryUnavailable if status >= _SERVER_ERROR else HistoryRefused
        raise refused(f"history was refused with HTTP {status}: {_reason(answer.content)}")
    try:
        return msgspec.json.decode(answer.content, type=form)
    except msgspec.DecodeError as exc:
        raise HistoryUnavailable(f"history's answer cannot be read: {exc}") from exc


def _reason(content: bytes) -> str:
    try:
        refusal = msgspec.json.decode(content, type=_Refusal)
    except msgspec.DecodeError:
        return "no reason given"
    code = f"{refusal.code} " if refusal.code else ""
    return f"{code}{refusal.message}"
