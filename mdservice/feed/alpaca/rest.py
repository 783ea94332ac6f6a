"""Alpaca's REST APIs: records that the stream has missed, and the market's hours.

Source: Alpaca's OpenAPI description of the market-data API; start and end are inclusive, ``limit``
counts all symbols together, pages are sorted by symbol, then time. News is sorted by the time of
the last update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

import anyio
import attrs

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable, NoHistory, SymbolsRefused
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest_messages import (
    ARTICLES,
    BAR_ROWS,
    BOOK_ROWS,
    DAILY_BAR_ROWS,
    QUOTE_ROWS,
    TRADE_ROWS,
    Answer,
    Answers,
    decode_refusal,
)
from mdservice.feed.subscriptions import chunks
from mdservice.model.feeds import CRYPTO, OPTIONS, STOCKS, Feed
from mdservice.model.kinds import (
    BARS,
    DAILY_BARS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    TRADES,
    Kind,
    R,
    Record,
)
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import format_ns
from mdservice.observability.logging import get_logger
from mdservice.observability.masking import mask_url
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpAnswer, HttpClient, HttpFailed
from mdservice.settings.feeds import SIMULATOR

if TYPE_CHECKING:
    import httpx

__all__ = ["AlpacaHistory", "AlpacaMarketClock"]

_log = get_logger(__name__)

_ALWAYS_OPEN = frozenset(("test", "boats", "overnight", "simulator"))
"""Feeds with quotes outside the exchange's hours, or with invented quotes."""

_SYMBOLS_PER_REQUEST = 200
_OPTIONS_PER_REQUEST = 100
_MOST_PER_PAGE = 10_000
_NEWS_PER_PAGE = 50
_LONGEST_BREAK_NS = 7 * 86_400 * 10**9
"""Longer than any holidays of the exchange: a symbol that trades has a daily bar in this time."""
_TIMEOUT_S = 10.0
_LONGEST_WAIT_S = 15.0
_PAUSE_S = 1.0
_MOST_TRIES = 5
_MOST_BYTES = 32 * 1024 * 1024
"""The limit of one page, in bytes; a page of 10,000 quotes has about 2 MB."""
_MOST_RECORDS = 200_000
"""The most records of one answer, all pages together."""
_OK, _TOO_MANY = 200, 429
_SERVER_ERROR = 500
_MAYBE_A_SYMBOL = frozenset((400, 404, 413, 414, 422))
"""Statuses of a request that a symbol, or the number of symbols, may have spoiled."""
_NOT_IN_THE_PLAN = "42210000"
"""Alpaca's code where the plan does not include recent quotes; seen with HTTP 403 and 422."""
_FEEDS_WITH_HISTORY = frozenset(("iex", "sip", "boats", "otc", "simulator"))
"""Unconfirmed for others: ``test``, ``overnight`` and ``delayed_sip`` seem to have none."""


class AlpacaHistory:
    """Past and latest records over HTTP.

    Args:
        base_url: ``https://data.alpaca.markets``.
        variant: Alpaca's name of the feed's variant: ``iex``, ``us``, ``indicative``.
        credentials: Sent as headers.
        clock: Stamps received records.
        transport: Replaces the network in tests.
        http: A client shared with other parts and closed by its owner.
        feed: Whose history it is.
        keep_wire: Whether each record is to keep its row as its ``wire``.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        variant: str,
        credentials: Credentials,
        clock: Clock,
        transport: httpx.AsyncBaseTransport | None = None,
        http: HttpClient | None = None,
        feed: Feed = STOCKS,
        *,
        keep_wire: bool = False,
    ) -> None:
        self._base_url = base_url.rstrip("/").removesuffix("/v2")
        self._feed = feed
        self._keep_wire = keep_wire
        self._variant = variant
        self._headers = credentials.as_headers()
        self._clock = clock
        self._http = http or HttpClient(transport)
        self._http.prepare(self._base_url)
        self._calls = _calls(feed, variant)
        self._limit = _RateLimit()
        self.rows_skipped = 0

    async def past(
        self, kind: Kind[R], symbols: Sequence[str], start_ns: int, end_ns: int
    ) -> Sequence[R]:
        """See :class:`mdservice.feed.history.History`; reads every page."""
        call = self._calls.get(kind)
        if call is None or call.past is None:
            raise NoHistory(f"there is no history of {kind.channel} of {self._feed.name}")
        if self._feed is STOCKS and self._variant not in _FEEDS_WITH_HISTORY:
            raise NoHistory(f"the feed {self._variant} has no history")
        query = {
            **call.past_query,
            "start": format_ns(start_ns),
            "end": format_ns(end_ns),
            "limit": str(call.most_per_page),
            "sort": "asc",
        }
        found: list[R] = []
        for chunk in chunks(_named(kind, symbols), call.most_symbols):
            token: str | None = ""
            while token is not None:
                paged = query | _symbols_of(chunk) | ({"page_token": token} if token else {})
                page = await self._get(call.past, paged, call.rows.page)
                found += page.records
                if len(found) > _MOST_RECORDS:
                    raise HistoryRefused(f"more than {_MOST_RECORDS} {kind.channel} are too many")
                token = page.next_page
        if kind is NEWS:  # an article may be about symbols of several requests
            once = {kind.identity(record): record for record in found}
            return sorted(once.values(), key=_event_ns)
        return found

    async def latest(self, kind: Kind[R], symbols: Sequence[str]) -> Sequence[R]:
        """See :class:`mdservice.feed.history.History`.

        Of news, the newest article about any of the symbols.
        """
        call = self._calls.get(kind)
        if call is None:
            raise NoHistory(f"there is no latest record of {kind.channel} of {self._feed.name}")
        if call.latest is None:
            return await self._newest_of_past(kind, symbols)
        found: list[R] = []
        for chunk in chunks(_named(kind, symbols), call.most_symbols):
            query = {**call.latest_query, **_symbols_of(chunk)}
            found += (await self._get(call.latest, query, call.rows.latest)).records
        return [max(found, key=_event_ns)] if kind is NEWS and found else found

    async def _newest_of_past(self, kind: Kind[R], symbols: Sequence[str]) -> Sequence[R]:
        now_ns = self._clock.utc_ns()
        past = await self.past(kind, symbols, now_ns - _LONGEST_BREAK_NS, now_ns)
        return list({record.symbol: record for record in past}.values())

    async def _get(
        self, path: str, query: Mapping[str, str], decode: Callable[..., Answer[R]]
    ) -> Answer[R]:
        for _ in range(_MOST_TRIES):
            await self._wait_for_room()
            try:
                answer = await self._http.get(
                    f"{self._base_url}{path}",
                    params=query,
                    headers=self._headers,
                    timeout_s=_TIMEOUT_S,
                    most_bytes=_MOST_BYTES,
                    any_status=True,
                )
            except HttpFailed as exc:
                raise HistoryUnavailable(
                    f"no history from {mask_url(self._base_url)}: {exc}"
                ) from exc
            self._limit.note(answer.headers)
            if answer.status != _TOO_MANY:
                return self._read(answer, decode)
            self._limit.exhausted(self._clock.utc_ns() / 1e9)
        raise HistoryUnavailable("the API's calls of this minute are used up, it says again")

    async def _wait_for_room(self) -> None:
        wait_s = self._limit.wait_s(self._clock.utc_ns() / 1e9)
        if wait_s > _LONGEST_WAIT_S:
            raise HistoryRefused(f"the API's calls of this minute are used up ({wait_s:.0f} s)")
        await anyio.sleep(wait_s)

    def _read(self, answer: HttpAnswer, decode: Callable[..., Answer[R]]) -> Answer[R]:
        status = answer.status
        if status != _OK:
            reason = decode_refusal(answer.body)
            message = f"history was refused with HTTP {status}: {reason}"
            if status >= _SERVER_ERROR:
                raise HistoryUnavailable(message)
            if status in _MAYBE_A_SYMBOL and not reason.startswith(_NOT_IN_THE_PLAN):
                raise SymbolsRefused(message)
            raise HistoryRefused(message)
        try:
            found = decode(answer.body, self._clock.utc_ns(), keep_wire=self._keep_wire)
        except ValueError as exc:
            raise HistoryUnavailable(f"history's answer cannot be read: {exc}") from exc
        if found.broken:
            self.rows_skipped += found.broken
            _log.warning("history_rows_skipped", count=found.broken, url=mask_url(self._base_url))
        return found


class AlpacaMarketClock:
    """The exchange's hours, for a feed. Without an answer the market counts as open.

    Args:
        base_url: ``https://paper-api.alpaca.markets``.
        feed: Some feeds are always open.
        credentials: Sent as headers.
        transport: Replaces the network in tests.
        http: A client shared with other parts and closed by its owner.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        feed: str,
        credentials: Credentials,
        transport: httpx.AsyncBaseTransport | None = None,
        http: HttpClient | None = None,
    ) -> None:
        self.clock: MarketClock | None = None
        """The market's clock; None for a feed that is always open."""
        if feed not in _ALWAYS_OPEN:
            http = http or HttpClient(transport)
            self.clock = MarketClock(base_url, credentials.as_headers(), http, "counts as open")

    @property
    def refused(self) -> str | None:
        """Why the hours stay unknown until a setting changes, or None."""
        return None if self.clock is None else self.clock.refused

    async def is_open(self) -> bool:
        """Ask; never raises."""
        market = None if self.clock is None else await self.clock.ask()
        return market is None or market.is_open


@attrs.define
class _RateLimit:
    """The remaining calls of this minute, by the last answer's headers."""

    remaining: int | None = None
    reset_s: float | None = None

    def note(self, headers: Mapping[str, str]) -> None:
        remaining, reset = headers.get("X-RateLimit-Remaining"), headers.get("X-RateLimit-Reset")
        self.remaining = int(remaining) if remaining and remaining.isdecimal() else None
        self.reset_s = float(reset) if reset and reset.isdecimal() else None

    def exhausted(self, now_s: float) -> None:
        """Note a refused call; if the answer gives no time of the reset, wait one second."""
        self.remaining = 0
        if self.reset_s is None or self.reset_s <= now_s:
            self.reset_s = now_s + _PAUSE_S

    def wait_s(self, now_s: float) -> float:
        """How long until the next call may be made."""
        if self.remaining != 0 or self.reset_s is None:
            return 0.0
        return max(0.0, self.reset_s - now_s)


def _named(kind: Kind[Any], symbols: Sequence[str]) -> Sequence[str]:
    """The symbols to name; all news includes that about any symbol."""
    return [EVERY_SYMBOL] if kind is NEWS and EVERY_SYMBOL in symbols else symbols


def _symbols_of(chunk: Sequence[str]) -> dict[str, str]:
    return {} if chunk == [EVERY_SYMBOL] else {"symbols": ",".join(chunk)}


def _event_ns(record: Record) -> int:
    return record.ts_event_ns


@attrs.frozen
class _Call(Generic[R]):
    """How records of one kind are asked for.

    Attributes:
        rows: Decodes the answers.
        past: The path of past records; None where there are none.
        latest: The path of the latest records; None for the newest of the past ones.
        past_query: Goes with the path of past records.
        latest_query: Goes with the path of the latest ones.
        most_symbols: The most symbols of one request.
        most_per_page: The most records of one page.
    """

    rows: Answers[R]
    past: str | None
    latest: str | None
    past_query: Mapping[str, str] = attrs.field(factory=dict)
    latest_query: Mapping[str, str] = attrs.field(factory=dict)
    most_symbols: int = _SYMBOLS_PER_REQUEST
    most_per_page: int = _MOST_PER_PAGE


def _calls(feed: Feed, variant: str) -> Mapping[Kind[Any], _Call[Any]]:
    """The calls for each kind of a feed that has any."""
    if feed is STOCKS:
        named = {} if variant == SIMULATOR else {"feed": variant}
        return _of_stocks_or_crypto("/v2/stocks/{}", "/v2/stocks/{}/latest", named)
    if feed is CRYPTO:
        base = f"/v1beta3/crypto/{variant}"
        books = _Call(BOOK_ROWS, None, f"{base}/latest/orderbooks")
        return {
            **_of_stocks_or_crypto(base + "/{}", base + "/latest/{}", {}),
            ORDERBOOKS: books,
        }
    if feed is OPTIONS:
        base, named = "/v1beta1/options", {"feed": variant}
        most = _OPTIONS_PER_REQUEST
        return {
            QUOTES: _Call(
                QUOTE_ROWS, None, f"{base}/quotes/latest", latest_query=named, most_symbols=most
            ),
            TRADES: _Call(
                TRADE_ROWS,
                f"{base}/trades",
                f"{base}/trades/latest",
                latest_query=named,
                most_symbols=most,
            ),
            DAILY_BARS: _Call(
                DAILY_BAR_ROWS, f"{base}/bars", None, {"timeframe": "1Day"}, most_symbols=most
            ),
        }
    whole, newest = {"include_content": "true"}, {"sort": "desc", "limit": "1"}
    path = "/v1beta1/news"
    return {NEWS: _Call(ARTICLES, path, path, whole, whole | newest, most_per_page=_NEWS_PER_PAGE)}


def _of_stocks_or_crypto(
    past: str, latest: str, query: Mapping[str, str]
) -> dict[Kind[Any], _Call[Any]]:
    minutes, days = {**query, "timeframe": "1Min"}, {**query, "timeframe": "1Day"}
    return {
        QUOTES: _Call(QUOTE_ROWS, past.format("quotes"), latest.format("quotes"), query, query),
        TRADES: _Call(TRADE_ROWS, past.format("trades"), latest.format("trades"), query, query),
        BARS: _Call(BAR_ROWS, past.format("bars"), latest.format("bars"), minutes, query),
        DAILY_BARS: _Call(DAILY_BAR_ROWS, past.format("bars"), None, days),
    }
