"""The other streams of an account: what their markets make, and what was done to it on its way.

The quotes of stocks are :mod:`tests.simulation.market`'s. Trades and all that follows from them
are made at these quotes; crypto, options and news have markets of their own.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import anyio
import attrs
import msgspec

from mdservice.model.feeds import FEEDS, FeedName, Topic
from mdservice.model.kinds import KINDS, ORDERBOOKS, QUOTES, Kind
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import format_ns
from mdservice.simulator import Simulator, SimulatorConfig, crypto, news, options, stocks
from mdservice.simulator.crypto import CryptoSource, SimBook, apply_change
from mdservice.simulator.kinds import SimKind
from mdservice.simulator.news import NewsSource
from mdservice.simulator.options import OptionsSource
from mdservice.simulator.tape import Tape

if TYPE_CHECKING:
    from mdservice.testing import VirtualClock
    from tests.simulation.market import Market

__all__ = [
    "CHANNELS",
    "FEED_NAMES",
    "OPTIONS_HELD",
    "PAIRS_HELD",
    "AccountMarket",
    "MadeRecord",
    "Rates",
    "content_of",
    "fields_of",
]

PAIRS_HELD = ("BTC/USD", "ETH/USD")
OPTIONS_HELD = ("AAPL261218C00200000",)
FEED_NAMES: Final[tuple[FeedName, ...]] = tuple(feed.name for feed in FEEDS)
CHANNELS: Final = tuple(dict.fromkeys(channel for feed in FEEDS[:3] for channel in feed.channels))
_STOCK_KINDS: Final = {
    kind.channel: kind for kind in stocks.STOCK_MARKET.kinds if kind is not stocks.QUOTES
}
_UPDATED: Final = {"updatedBars": "bars"}
_WITH_TRADES: Final = frozenset(("corrections", "cancelErrors"))
_BY_CHANNEL: Final = {kind.channel: kind for kind in KINDS}
_TAKERS: Final = {"B": "buy", "S": "sell", "-": None}
_ACTIONS: Final = {"C": "cancel", "E": "error"}
_CALM: Final = 0.2
"""How much of the rates is left in a calm market."""


@attrs.frozen
class Rates:
    """How lively the markets are.

    Attributes:
        crypto: Changes of order books per second.
        options: Quotes and trades of options per second.
        news_every_s: Mean time between two articles.
        pause_s: Time between two publications.
    """

    crypto: float
    options: float
    news_every_s: float
    pause_s: float

    def config(self, config: SimulatorConfig) -> SimulatorConfig:
        """The configuration of the markets, with more of what is rare than there is at Alpaca."""
        return attrs.evolve(
            config,
            crypto_rate=self.crypto,
            options_rate=self.options,
            trades_per_quote=0.6,
            late_trade_ratio=0.04,
            correction_ratio=0.02,
            cancel_ratio=0.02,
            imbalance_ratio=0.05,
            halt_every_s=40.0,
            halt_s=9.0,
        )


@attrs.define
class MadeRecord:
    """A record of a market, and what was done to it on its way.

    Attributes:
        kind: The service's kind.
        symbol: ``*`` for news.
        ts_ns: Its own time.
        sent_ns: When it was sent, by the market's clock.
        at_s: The same by the event loop's clock.
        count: How many equal ones there are.
        spoiled: A fault kept it from an open connection.
        reordered: It was sent behind a newer one.
        duplicated: It was sent twice.
        left_out: The service said that the feed does not give it this topic.
        subscribed: The newest connection had subscribed to its topic.
    """

    feed: FeedName
    kind: Kind[Any]
    symbol: str
    ts_ns: int
    sent_ns: int
    at_s: float
    content: bytes
    count: int = 1
    spoiled: bool = False
    reordered: bool = False
    duplicated: bool = False
    left_out: bool = False
    subscribed: bool = False

    @property
    def ts_event_ns(self) -> int:
        """As a record has it."""
        return self.ts_ns


def _kind_of(channel: str) -> Kind[Any]:
    """The service's kind of the records of a channel."""
    return _BY_CHANNEL[_UPDATED.get(channel, channel)]


def content_of(fields: Mapping[str, Any]) -> bytes:
    """What makes two records equal, from the fields of their JSON objects."""
    return msgspec.json.encode(_plain(fields), order="sorted")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        ignored = ("seq", "updated", "created_at", "updated_at")
        return {name: _plain(each) for name, each in value.items() if name not in ignored}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _same(*names: str) -> Callable[[Any], dict[str, Any]]:
    return lambda record: {name: getattr(record, name) for name in names}


def _trade(one: Any) -> dict[str, Any]:
    fields = _same("price", "size", "exchange", "conditions", "tape", "id")
    return fields(one)


def _pair_trade(one: Any) -> dict[str, Any]:
    none = {"exchange": None, "conditions": [], "tape": None}
    return {"price": one.price, "size": one.size, "id": one.id, **none} | {
        "taker_side": _TAKERS[one.taker]
    }


def _option_trade(one: Any) -> dict[str, Any]:
    none = {"tape": None, "id": None, "conditions": [one.condition]}
    return {"price": one.price, "size": one.size, "exchange": one.exchange, **none}


_correction = _same(
    *("exchange", "tape", "original_id", "original_price", "original_size"),
    *("original_conditions", "corrected_id", "corrected_price", "corrected_size"),
    "corrected_conditions",
)
_bar = _same("open", "high", "low", "close", "volume", "trade_count", "vwap")
_quote = _same("bid", "ask", "bid_size", "ask_size")
_FIELDS: Final[dict[SimKind[Any], Callable[[Any], dict[str, Any]]]] = {
    stocks.TRADES: _trade,
    crypto.TRADES: _pair_trade,
    options.TRADES: _option_trade,
    stocks.CORRECTIONS: _correction,
    stocks.CANCELS: lambda one: {
        **_same("exchange", "tape", "id", "price", "size")(one),
        "action": _ACTIONS[one.action],
    },
    **{
        kind: _bar
        for market in (stocks, crypto)
        for kind in (market.BARS, market.UPDATED_BARS, market.DAILY_BARS)
    },
    stocks.STATUSES: _same(
        "status_code", "status_message", "reason_code", "reason_message", "tape"
    ),
    stocks.LULDS: _same("limit_up", "limit_down", "indicator", "tape"),
    stocks.IMBALANCES: _same("price", "tape"),
    crypto.QUOTES: _quote,
    options.QUOTES: _quote,
    crypto.ORDERBOOKS: _same("bids", "asks"),
    news.ARTICLES: _same("id", "headline", "summary", "author", "content", "url", "source"),
}


class AccountMarket:
    """Makes the records of every stream but the quotes of stocks, and keeps them.

    Args:
        seed: Of the plan.
        config: The simulator's.
        rates: How lively the markets are.
        clock: The market's.
        quotes: The market of the quotes of stocks.
    """

    def __init__(
        self,
        seed: int,
        config: SimulatorConfig,
        rates: Rates,
        clock: VirtualClock,
        quotes: Market,
    ) -> None:
        self.made: dict[Kind[Any], dict[bytes, MadeRecord]] = defaultdict(dict)
        """The records by kind and content."""
        self.of: dict[tuple[FeedName, Kind[Any], str], list[MadeRecord]] = defaultdict(list)
        """The same in the order in which they were sent, by feed, kind and symbol."""
        self.books: dict[str, SimBook] = {}
        self.changed_ids: set[tuple[str, Any]] = set()
        """Symbol and id of the trades that were corrected or canceled."""
        self.corrected: set[tuple[str, Any]] = set()
        """Symbol and id of the trades that came of a correction: REST has them as trades."""
        self._rng = random.Random(f"{seed}/account market")
        self._clock = clock
        self._quotes = quotes
        self._rates = rates
        lively = rates.config(config)
        self._tape = Tape(lively.tape_rules())
        self._tape.symbols = frozenset(quotes.symbols)
        self._crypto = CryptoSource(lively)
        self._crypto.follow({"trades": frozenset(PAIRS_HELD)})
        self._options = OptionsSource(lively)
        self._options.follow({"trades": frozenset(OPTIONS_HELD)})
        self._news = NewsSource(lively, rates.news_every_s)
        self._news.follow({"news": frozenset((EVERY_SYMBOL,))})
        self._new_quotes: list[Any] = []
        self._left_out: Callable[[FeedName], Collection[Topic]] = lambda _: ()

    def quoted(self, quotes: Iterable[Any]) -> None:
        """Note quotes of stocks, at which trades are made."""
        self._new_quotes += quotes

    async def run(
        self, simulator: Simulator, left_out: Callable[[FeedName], Collection[Topic]]
    ) -> None:
        """Publish until cancelled; nothing while the market is closed.

        Args:
            simulator: Where.
            left_out: Returns the topics of which the service says that it does not get them.
        """
        self._left_out = left_out
        owed = dict.fromkeys(("crypto", "options"), 0.0)
        began_s = anyio.current_time()
        while True:
            await anyio.sleep(self._rng.uniform(0.2, 1.8) * self._rates.pause_s)
            if not self._quotes.open:
                continue
            now_ns, now_s = self._clock.utc_ns(), anyio.current_time()
            share = _CALM if self._quotes.calm else 1.0
            counts = {}
            for name, rate in (("crypto", self._rates.crypto), ("options", self._rates.options)):
                owed[name] += self._rng.expovariate(1) * rate * self._rates.pause_s * share
                counts[name] = int(owed[name])
                owed[name] -= counts[name]
            quotes, self._new_quotes = self._new_quotes, []
            for channel, records in self._tape.make(quotes, now_ns):
                self._publish(simulator, _STOCK_KINDS[channel], records)
            made = attrs.astuple(self._crypto.take(counts["crypto"], now_ns), recurse=False)
            for kind, records in zip(crypto.CRYPTO_MARKET.kinds, made, strict=True):
                self._publish(simulator, kind, records)
            trades, option_quotes = self._options.take(counts["options"], now_ns)
            self._publish(simulator, options.TRADES, trades)
            self._publish(simulator, options.QUOTES, option_quotes)
            self._publish(simulator, news.ARTICLES, self._news.take(now_s - began_s, now_ns))

    def _publish(self, simulator: Simulator, kind: SimKind[Any], records: Iterable[Any]) -> None:
        sent = list(records)
        if not sent:
            return
        feed = kind.feed.name
        channel = "trades" if kind.channel in _WITH_TRADES else kind.channel
        left_out = self._left_out(feed)
        flags: Counter[str] = Counter()
        subscribed: Collection[str] = ()
        for connection in list(simulator._connections.values()):
            if connection.session is not None and connection.session.feed is kind.feed:
                subscribed = connection._wanted.get(kind, ())
                faults = connection.faults
                muted = faults.muted(anyio.current_time())
                flags["spoiled"] += muted or faults._garble > 0
                flags["reordered"] += faults._reorder > 0 or bool(faults._held.get(kind.channel))
                flags["duplicated"] += faults._duplicate > 0
        for record in sent:
            one = self._note(kind, record, flags)
            one.left_out = Topic(channel, record.symbol) in left_out
            one.subscribed = not {record.symbol, EVERY_SYMBOL}.isdisjoint(subscribed)
        frames = [self._rng.randrange(1, 8) for _ in range(self._rng.randrange(3))]
        simulator.send_records(kind, sent, frames=frames)

    def _note(self, sim_kind: SimKind[Any], record: Any, flags: Counter[str]) -> MadeRecord:
        kind = _kind_of(sim_kind.channel)
        fields = _FIELDS[sim_kind](record)
        if sim_kind.channel == "corrections":
            self.changed_ids.add((record.symbol, record.original_id))
            self.corrected.add((record.symbol, record.corrected_id))
        elif sim_kind.channel == "cancelErrors":
            self.changed_ids.add((record.symbol, record.id))
        elif kind is ORDERBOOKS:
            book = apply_change(self.books.get(record.symbol), record)
            assert book is not None
            self.books[record.symbol] = book
            fields = {"bids": book.bids, "asks": book.asks}
        named = {"symbols": record.symbols} if sim_kind is news.ARTICLES else {}
        named = named or {"symbol": record.symbol}
        content = content_of({**named, "timestamp": format_ns(record.ts_event_ns), **fields})
        known = self.made[kind].get(content)
        if known is not None:
            known.count += 1
        one = MadeRecord(
            sim_kind.feed.name,
            kind,
            record.symbol,
            record.ts_event_ns,
            self._clock.utc_ns(),
            anyio.current_time(),
            content,
            spoiled=flags["spoiled"] > 0,
            reordered=flags["reordered"] > 0,
            duplicated=flags["duplicated"] > 0,
        )
        if known is not None:
            known.duplicated |= one.duplicated
        else:
            self.made[kind][content] = one
        self.of[one.feed, kind, one.symbol].append(one)
        return one


def fields_of(kind: Kind[Any], record: Any) -> dict[str, Any]:
    """The fields of a record of the service, as everybody sees them."""
    fields: dict[str, Any] = msgspec.json.decode(kind.encode(record))
    if kind is QUOTES:
        del fields["price"]
    return fields
