"""Finds prices of held symbols that Redis has not: at the service, or at Alpaca's REST APIs.

::

    held, without a price ──1 s──▶ the service ──▶ quote, else the last trade ──▶ the P&L
               └─────────────3 s──▶ Alpaca ─────────▲

Answers never wait for it. A price from Redis comes first most often, and the symbol is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote as url_quote

import anyio
import anyio.to_thread
import attrs
import msgspec

from mdservice.client.discovery import Discovery
from mdservice.client.http import NoAnswer, ask, fetch
from mdservice.clock import Clock
from mdservice.errors import MDServiceError
from mdservice.feed.alpaca.drivers import make_history
from mdservice.feed.history import HalvingHistory, History
from mdservice.model.bar import Bar
from mdservice.model.feeds import CRYPTO, OPTIONS, STOCKS, Feed, feed_of
from mdservice.model.kinds import DAILY_BARS, QUOTES, TRADES, Kind, R, RecordDecoder
from mdservice.model.quote import Quote
from mdservice.model.symbol import pair_without_slash
from mdservice.model.trade import Trade
from mdservice.observability.logging import get_logger, masked
from mdservice.pnl.day import midnight_ns
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.numbers import to_price
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings

__all__ = [
    "AlpacaPrices",
    "LastCloses",
    "MissingPrices",
    "PriceSource",
    "ServicePrices",
    "last_closes",
    "price_sources",
]

_log = get_logger(__name__)

_LOOK_S: Final = 1.0
"""How often each source may be asked: with 200 symbols a call, 10,000 prices take 50 s, and most
calls of Alpaca's minute stay with the service."""
_MOST_SYMBOLS: Final = 200
_ANSWER_LIMIT_S: Final = 10.0
_PAUSES_S: Final = (2.0, 10.0, 60.0, 300.0)
"""The waits until a source that had no price of a symbol is asked for it again."""
_FIRST_S, _LIMIT_S = 2.0, 300.0
"""The bounds of the wait after a failure of a source."""
_SERVICE_AFTER_S, _ALPACA_AFTER_S = 1.0, 3.0
"""How long a symbol has been without a price when it is asked for. The service has the price of a
new symbol within 3 s."""
_SERVICE_TIMEOUT_S: Final = 3.0
_LATEST: Final = "/api/v1/market-data/latest"
_OK: Final = 200
_LONGEST_BREAK_DAYS: Final = 7
"""Longer than any holidays of the exchange."""
_HOUR_NS: Final = 3_600_000_000_000
_LONGEST_DAY_NS: Final = 25 * _HOUR_NS
"""When clocks are set back."""
_CRYPTO_BEGINS_BEFORE_NS: Final = 22 * _HOUR_NS
"""The bar of crypto that counts began at least so long before midnight in New York: it is over two
hours after that at the latest."""
_OF_SOME_EXCHANGES: Final = ("iex", "delayed_sip", "boats", "overnight")
"""Feeds whose daily bars are not those of all exchanges, or that have none."""


class PriceSource(Protocol):
    """A source of latest quotes and trades.

    Attributes:
        name: Whose prices they are, for people.
        after_s: How long a symbol has been without a price when it is asked for, seconds.
    """

    name: str
    after_s: float

    def has(self, symbol: str) -> bool:
        """Whether it may have a price of this symbol."""
        ...

    async def latest(self, kind: Kind[R], symbols: Sequence[str]) -> Iterable[R]:
        """The latest records; symbols without one are omitted.

        Raises:
            MDServiceError: It does not answer, or refuses.
        """
        ...


class MissingPrices:
    """Asks the sources for the price of each held symbol that has none of its own kind.

    Each source is asked by itself, for a limited number of symbols a second, and less often after
    each failure. A symbol that a source does not know is asked for again, less and less often.

    Args:
        engine: Knows which prices are missing.
        sources: Where prices may be.
    """

    def __init__(self, engine: PnlEngine, sources: Sequence[PriceSource]) -> None:
        self._engine = engine
        self._sources = sources
        self._errors: dict[str, str] = {}
        self._listed: tuple[Sequence[str], int, list[str]] = ((), 0, [])
        """The held symbols, how many of them wait, and which."""

    def warning(self) -> str | None:
        """Why prices that are missing cannot be found, or None."""
        if not self._errors or not self._engine.totals.unpriced:
            return None
        reasons = [f"{name}: {reason}" for name, reason in self._errors.items()]
        return f"missing prices cannot be asked for: {'; '.join(reasons)}"

    async def run(self, came: Callable[[Quote | Trade], None]) -> None:
        """Search until cancelled.

        Args:
            came: Called with each quote, and each last trade where quotes are not enough.
        """
        async with anyio.create_task_group() as tasks:
            for source in self._sources:
                tasks.start_soon(self._search, source, came)

    async def _search(self, source: PriceSource, came: Callable[[Quote | Trade], None]) -> None:
        due: dict[str, _Due] = {}
        backoff = Backoff(_FIRST_S, _LIMIT_S)
        while True:
            await anyio.sleep(_LOOK_S)
            now_s = anyio.current_time()
            due = {
                symbol: due.get(symbol) or _Due(now_s + source.after_s)
                for symbol in self._missing()
                if source.has(symbol)
            }
            symbols = [symbol for symbol, each in due.items() if each.at_s <= now_s]
            symbols = symbols[:_MOST_SYMBOLS]
            if not symbols:
                self._errors.pop(source.name, None)
                continue
            try:
                with anyio.fail_after(_ANSWER_LIMIT_S):
                    for quote in await source.latest(QUOTES, symbols):
                        came(quote)
                    if poor := [symbol for symbol in symbols if self._needs_trade(symbol)]:
                        for trade in await source.latest(TRADES, poor):
                            came(trade)
            except NoAnswer:  # no service runs here, or it is reported elsewhere
                await anyio.sleep(backoff.next_s())
            except (MDServiceError, TimeoutError) as exc:
                self._fail(source, masked(str(exc)) or f"no answer within {_ANSWER_LIMIT_S:g} s")
                await anyio.sleep(backoff.next_s())
            else:
                self._errors.pop(source.name, None)
                backoff.reset()
                for symbol in symbols:
                    due[symbol].put_off(anyio.current_time())

    def _needs_trade(self, symbol: str) -> bool:
        holding = self._engine.holding(symbol)
        if holding is None:
            return False
        return holding.waiting if self._engine.mark == "last" else holding.price is None

    def _missing(self) -> list[str]:
        """The held symbols that are not priced as they should be."""
        engine = self._engine
        symbols, waiting = engine.symbols, engine.totals.waiting
        if self._listed[0] is not symbols or self._listed[1] != waiting:
            found = []
            if waiting:
                holdings = ((symbol, engine.holding(symbol)) for symbol in symbols)
                found = [symbol for symbol, held in holdings if held is not None and held.waiting]
            self._listed = symbols, waiting, found
        return self._listed[2]

    def _fail(self, source: PriceSource, reason: str) -> None:
        if self._errors.get(source.name) != reason:
            _log.warning("missing_prices_failed", source=source.name, reason=reason)
        self._errors[source.name] = reason


@attrs.define
class _Due:
    """When a symbol is asked for next, by the event loop's clock, and how often it was."""

    at_s: float
    tries: int = 0

    def put_off(self, now_s: float) -> None:
        self.at_s = now_s + _PAUSES_S[min(self.tries, len(_PAUSES_S) - 1)]
        self.tries += 1


class ServicePrices:
    """A :class:`PriceSource`: the service whose Redis the gateway reads.

    A service that writes to another Redis is not asked: its prices may be simulated ones.

    Args:
        socket: The service's UNIX socket.
        discovery: Finds the Redis that the gateway reads.
    """

    after_s = _SERVICE_AFTER_S

    def __init__(self, socket: Path, discovery: Discovery) -> None:
        self.name = f"the service at {socket}"
        self._socket = socket
        self._discovery = discovery

    def has(self, symbol: str) -> bool:
        """Always, since only the service knows what it subscribes to."""
        return bool(symbol)

    async def latest(self, kind: Kind[R], symbols: Sequence[str]) -> Iterable[R]:
        """See :meth:`PriceSource.latest`."""
        location = await self._discovery.find()
        redis = location.address.shown, location.names.prefix
        payloads = await anyio.to_thread.run_sync(  # noqa: TID251 - a UNIX socket
            partial(self._ask, kind.channel, symbols, redis), abandon_on_cancel=True
        )
        return RecordDecoder(kind, symbols).decode_all(payloads)

    def _ask(
        self, channel: str, symbols: Sequence[str], redis: tuple[str, str]
    ) -> Sequence[msgspec.Raw]:
        """The records; runs in a thread."""
        status = ask(self._socket, "GET", "/status", timeout_s=_SERVICE_TIMEOUT_S)
        report = status.content.get("redis")
        if not isinstance(report, dict) or redis != (report.get("url"), report.get("key_prefix")):
            return ()
        call = f"{_LATEST}/{channel}?symbols={url_quote(','.join(symbols))}"
        code, body = fetch(self._socket, "GET", call, timeout_s=_SERVICE_TIMEOUT_S)
        if code != _OK:
            raise NoAnswer(f"{self.name} answers HTTP {code}")
        try:
            return msgspec.json.decode(body, type=_Records).records
        except ValueError as exc:
            raise NoAnswer(f"what answers at {self._socket} is not mdservice") from exc


class _Records(msgspec.Struct):
    records: list[msgspec.Raw]


class AlpacaPrices:
    """A :class:`PriceSource`: Alpaca's REST API of one feed.

    Args:
        feed: Which one.
        history: Its latest records.
    """

    after_s = _ALPACA_AFTER_S

    def __init__(self, feed: Feed, history: History) -> None:
        self.name = f"Alpaca's {feed.name}"
        self._feed = feed
        self._of_kind: dict[Kind[Any], HalvingHistory[Any]] = {
            kind: HalvingHistory(history, kind) for kind in (QUOTES, TRADES)
        }

    def has(self, symbol: str) -> bool:
        """Whether it is a symbol of this feed."""
        return feed_of(symbol) is self._feed

    async def latest(self, kind: Kind[R], symbols: Sequence[str]) -> Iterable[R]:
        """See :meth:`PriceSource.latest`."""
        return (await self._of_kind[kind].latest(symbols)).records


class LastCloses:
    """The prices at the last close before a day, from daily bars.

    A day of stocks and options is New York's. That of crypto begins at midnight in Chicago, an hour
    after New York's.

    Source: alpaca-py's issue 169, and daily bars of BTC/USD, which begin at 05:00 UTC in summer and
    at 06:00 in winter.

    Args:
        histories: By feed.
        clock: The time, by which a bar of crypto is over or not.
    """

    def __init__(self, histories: Mapping[Feed, History], clock: Clock) -> None:
        self._bars = {
            feed: HalvingHistory(history, DAILY_BARS) for feed, history in histories.items()
        }
        self._clock = clock

    async def before(
        self, date: str, symbols: Sequence[str]
    ) -> tuple[dict[str, Decimal], list[str]]:
        """Dollars a share, by the symbols of the feed; and why some are not known.

        Symbols without a bar are omitted. So is crypto until an hour or two after midnight, when
        the bar of the day before is over.

        Args:
            date: New York's: ``2026-11-20``.
            symbols: As positions write them.
        """
        found: dict[str, Decimal] = {}
        reasons = []
        names = [pair_without_slash(symbol) or symbol for symbol in symbols]
        for feed, bars in self._bars.items():
            of_feed = [name for name in names if feed_of(name) is feed]
            if not of_feed:
                continue
            try:
                found |= await self._closes(feed, bars, date, of_feed)
            except MDServiceError as exc:
                reasons.append(f"{feed.name}: {masked(str(exc))}")
        return found, reasons

    async def _closes(
        self, feed: Feed, bars: HalvingHistory[Bar], date: str, symbols: Sequence[str]
    ) -> dict[str, Decimal]:
        begins_ns, now_ns = midnight_ns(date), self._clock.utc_ns()
        last_ns = begins_ns - (_CRYPTO_BEGINS_BEFORE_NS if feed is CRYPTO else 1)
        records = (
            await bars.past(symbols, midnight_ns(date, -_LONGEST_BREAK_DAYS), last_ns)
        ).records
        newest = {bar.symbol: bar for bar in sorted(records, key=lambda bar: bar.ts_event_ns)}
        prices = {
            symbol: to_price(bar.close)
            for symbol, bar in newest.items()
            if feed is not CRYPTO or bar.ts_event_ns + _LONGEST_DAY_NS <= now_ns
        }
        return {
            symbol: price for symbol, price in prices.items() if price is not None and price > 0
        }


def last_closes(settings: Settings, clock: Clock, http: HttpClient) -> LastCloses | None:
    """Those of Alpaca; None without keys, or without a history. The arguments are as below.

    The bars of stocks are of all exchanges, which every plan has of the days before.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """
    if settings.api_key is None or settings.secret_key is None:
        return None
    if settings.feed in _OF_SOME_EXCHANGES:
        settings = attrs.evolve(settings, feed="sip")
    made = {feed: make_history(settings, feed, clock, http) for feed in (STOCKS, CRYPTO, OPTIONS)}
    histories = {feed: history for feed, history in made.items() if history is not None}
    return LastCloses(histories, clock) if histories else None


def price_sources(
    settings: Settings, discovery: Discovery, clock: Clock, http: HttpClient
) -> list[PriceSource]:
    """The service, and Alpaca if there are keys.

    Args:
        settings: The socket, the keys, the URLs and the feeds.
        discovery: Finds the Redis that the gateway reads.
        clock: Stamps the quotes.
        http: For Alpaca; closed by its owner.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """
    found: list[PriceSource] = [ServicePrices(settings.socket, discovery)]
    if settings.api_key is not None and settings.secret_key is not None:
        for feed in (STOCKS, CRYPTO, OPTIONS):
            history = make_history(settings, feed, clock, http)
            if history is not None:
                found.append(AlpacaPrices(feed, history))
    return found
