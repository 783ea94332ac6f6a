"""The options market: contracts priced by Black and Scholes from the stock that they are on.

A quote lies around the model's price, with the wide spreads of options; a bid that would be below
a tick is 0. A trade has a price between bid and ask. Pure: prices of the stocks and the clock's
time are arguments.

Source: Alpaca, "Real-time Option Data"; Black and Scholes 1973.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, partial
from statistics import NormalDist
from typing import Any, Final
from zoneinfo import ZoneInfo

import attrs
import msgspec

from mdservice.model.symbol import EVERY_SYMBOL, is_option
from mdservice.model.timestamps import LATEST_NS
from mdservice.simulator.bars import MINUTE_NS, SimBar, day_start_ns
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.crypto import Tally
from mdservice.simulator.feeds import OPTIONS
from mdservice.simulator.http import Answer, Call, malformed
from mdservice.simulator.kinds import Batch, Records, SimKind, SimMarket, Source
from mdservice.simulator.market import UNIVERSE, MarketRecord, start_cents
from mdservice.simulator.rest_history import (
    RestRules,
    answer_history,
    answer_latest,
    limit_parameter,
    parse_history,
    parse_latest,
    wants_days,
)
from mdservice.simulator.stock_records import bar_row, encoder, rower
from mdservice.simulator.stocks import QUOTES as STOCK_QUOTES

__all__ = [
    "OPTIONS_MARKET",
    "QUOTES",
    "TRADES",
    "Contract",
    "OptionsSource",
    "SimOptionQuote",
    "SimOptionTrade",
    "chain",
    "greeks",
    "model_price",
    "swing",
    "theoretical_quote",
    "volatility",
]

_RATE = 0.04
"""Of interest, a year."""
_YEAR_S = 365 * 86_400.0
_LEAST_YEARS = 1e-9
_CLOSES = time(16, 0)
_AFTER_CLOSE = timedelta(hours=8)
"""From the close to the next day."""
_NEW_YORK = ZoneInfo("America/New_York")
_FRIDAY = 4
_EXPIRIES = 4
_STRIKES_EACH_WAY = 10
_STRIKE_STEPS = (0.5, 1.0, 2.5, 5.0, 10.0)
_STEPS_IN_PRICE = 60
_SMALL_TICK_BELOW = 300
_SMALL_TICK, _TICK = 1, 5
"""Cents: options below 3 dollars trade in cents, others in five."""
_CENTS = 100
_STRIKE_SCALE = 1_000
_NO_EXCHANGE = " "
_EXCHANGES = ("C", "A", "N", "Q", "P", "X", "Z", "M", "B", "W", "U", "D", "E", "I", "J", "H")
_CONDITIONS = ("I", "a", "I", "n", "I", "g", "S", "I")
_TRADE_BELOW = 24
"""Of 256: the part of the records that are trades."""
_STEP_NS = 1_000
_CLOCK_STEP_NS = 1_000_000_000
_MOST_AT_ONCE = 1_000
_BUSIEST = 5
"""How many stocks have contracts that ``*`` means."""

_SWINGS = ((0.004, 97 * 10**9), (0.006, 641 * 10**9), (0.01, 3_607 * 10**9))
"""Parts of the price, and their periods in nanoseconds."""
_LISTED_LIMIT, _MOST_LISTED = 100, 1_000
_NORMAL = NormalDist()


class SimOptionQuote(msgspec.Struct, frozen=True, gc=False):
    """A quote of an option.

    Attributes:
        symbol: ``AAPL261218C00200000``.
        bid: Dollars a share; 0 where nothing is bid.
        ask: Likewise.
        bid_size: Contracts.
        ask_size: Contracts.
        ts_event_ns: UTC nanoseconds.
        bid_exchange: One letter.
        ask_exchange: One letter.
        condition: One letter.
    """

    symbol: str
    bid: float
    ask: float
    bid_size: int = 10
    ask_size: int = 10
    ts_event_ns: int = 0
    bid_exchange: str = "C"
    ask_exchange: str = "C"
    condition: str = "A"


class SimOptionTrade(msgspec.Struct, frozen=True, gc=False):
    """A trade of an option: dollars a share, contracts. It has no id."""

    symbol: str
    price: float
    size: int = 1
    ts_event_ns: int = 0
    exchange: str = "C"
    condition: str = "I"


@attrs.frozen
class Contract:
    """What an OCC symbol says.

    Attributes:
        symbol: ``AAPL261218C00200000``.
        root: ``AAPL``: the stock.
        expiry: 2026-12-18.
        is_call: Whether it is a call; else a put.
        strike: Dollars a share: 200.
    """

    symbol: str
    root: str
    expiry: date
    is_call: bool
    strike: float

    @classmethod
    def parse(cls, symbol: str) -> Contract:
        """Read a symbol.

        Raises:
            ValueError: It is no OCC symbol, there is no such date, or the strike is 0.
        """
        strike = int(symbol[-8:]) / _STRIKE_SCALE if is_option(symbol) else 0
        if not strike:
            raise ValueError(f"{symbol} is not an option's symbol")
        expiry = datetime.strptime(symbol[-15:-9], "%y%m%d").replace(tzinfo=UTC).date()
        return cls(symbol, symbol[:-15], expiry, symbol[-9] == "C", strike)

    @classmethod
    def of(cls, root: str, expiry: date, *, is_call: bool, strike: float) -> Contract:
        """The contract with its symbol."""
        letter = "C" if is_call else "P"
        symbol = f"{root}{expiry:%y%m%d}{letter}{round(strike * _STRIKE_SCALE):08d}"
        return cls(symbol, root, expiry, is_call, strike)

    def years_left(self, now_ns: int) -> float:
        """Years until 16:00 in New York on its last day; at least a moment."""
        closes = datetime.combine(self.expiry, _CLOSES, _NEW_YORK).timestamp()
        return max(_LEAST_YEARS, (closes - now_ns / 1e9) / _YEAR_S)


def model_price(contract: Contract, spot: float, years: float, sigma: float) -> float:
    """The price by Black and Scholes, dollars a share, without dividends."""
    discounted = contract.strike * math.exp(-_RATE * years)
    d1, d2 = _d1_d2(contract, spot, years, sigma)
    if contract.is_call:
        return spot * _NORMAL.cdf(d1) - discounted * _NORMAL.cdf(d2)
    return discounted * _NORMAL.cdf(-d2) - spot * _NORMAL.cdf(-d1)


def greeks(contract: Contract, spot: float, years: float, sigma: float) -> dict[str, float]:
    """Delta, gamma, rho and vega (for one per cent), and theta (for one day)."""
    d1, d2 = _d1_d2(contract, spot, years, sigma)
    discounted = contract.strike * math.exp(-_RATE * years)
    sign = 1 if contract.is_call else -1
    density, root = _NORMAL.pdf(d1), math.sqrt(years)
    carried = sign * _RATE * discounted * _NORMAL.cdf(sign * d2)
    exact = {
        "delta": sign * _NORMAL.cdf(sign * d1),
        "gamma": density / (spot * sigma * root),
        "rho": sign * discounted * years * _NORMAL.cdf(sign * d2) / 100,
        "theta": (-spot * density * sigma / (2 * root) - carried) / 365,
        "vega": spot * density * root / 100,
    }
    return {name: round(value, 4) + 0.0 for name, value in exact.items()}  # 0 without a minus


def _d1_d2(contract: Contract, spot: float, years: float, sigma: float) -> tuple[float, float]:
    spread = sigma * math.sqrt(years)
    d1 = (math.log(spot / contract.strike) + (_RATE + sigma * sigma / 2) * years) / spread
    return d1, d1 - spread


@cache
def _at_the_money(root: str) -> float:
    """Between 0.18 and 0.58 a year, by the stock's name."""
    return 0.18 + hashlib.sha256(root.encode()).digest()[0] / 255 * 0.4


def volatility(contract: Contract) -> float:
    """The implied volatility a year: a smile around the stock's start price."""
    spot = start_cents(contract.root) / _CENTS
    return _at_the_money(contract.root) + 0.15 * min(2.0, math.log(contract.strike / spot) ** 2)


def chain(root: str, now_ns: int) -> Iterator[Contract]:
    """The listed contracts of a stock: by expiry, calls before puts, by strike.

    The next four Fridays whose market has not closed yet, and strikes around the stock's start
    price.
    """
    today = (datetime.fromtimestamp(now_ns / 1e9, _NEW_YORK) + _AFTER_CLOSE).date()
    friday = today + timedelta(days=(_FRIDAY - today.weekday()) % 7)
    spot = start_cents(root) / _CENTS
    step = next((step for step in _STRIKE_STEPS if spot / step <= _STEPS_IN_PRICE), 25.0)
    middle = round(spot / step)
    strikes = [
        place * step
        for place in range(middle - _STRIKES_EACH_WAY, middle + _STRIKES_EACH_WAY + 1)
        if place > 0
    ]
    for week in range(_EXPIRIES):
        for is_call in (True, False):
            for strike in strikes:
                expiry = friday + timedelta(weeks=week)
                yield Contract.of(root, expiry, is_call=is_call, strike=strike)


def theoretical_quote(
    contract: Contract, spot: float, now_ns: int, *, widen: float = 0.0, sizes: int = 0
) -> SimOptionQuote:
    """The market makers' quote at this price of the stock.

    Args:
        contract: Which one.
        spot: The stock's price, dollars.
        now_ns: The quote's time, UTC nanoseconds.
        widen: How much wider than usual, 0 to 1.
        sizes: 24 bits from which sizes and exchanges are drawn.
    """
    years = contract.years_left(now_ns)
    cents = model_price(contract, spot, years, volatility(contract)) * _CENTS
    half = max(1.0, min(cents * 0.02, 10 + cents * 0.003)) * (1 + widen)
    tick = _SMALL_TICK if cents < _SMALL_TICK_BELOW else _TICK
    bid = max(0, math.floor((cents - half) / tick) * tick)
    ask = max(bid + tick, math.ceil((cents + half) / tick) * tick)
    return SimOptionQuote(
        contract.symbol,
        bid / _CENTS,
        ask / _CENTS,
        1 + (sizes & 0xFF) if bid else 0,
        1 + (sizes >> 8 & 0xFF),
        now_ns,
        _EXCHANGES[sizes >> 16 & 0xF] if bid else _NO_EXCHANGE,
        _EXCHANGES[sizes >> 20 & 0xF],
    )


def swing(root: str, ts_ns: int) -> float:
    """A price of a stock that is not quoted: within 2 per cent of its start, by the time alone."""
    phases = hashlib.sha256(root.encode()).digest()
    moved = sum(
        part * math.sin(2 * math.pi * (ts_ns % period_ns / period_ns + phases[place] / 256))
        for place, (part, period_ns) in enumerate(_SWINGS)
    )
    return start_cents(root) / _CENTS * (1 + moved)


class OptionsSource:
    """Makes quotes and trades of the followed contracts.

    Args:
        config: The seed of every random choice, the mean records per second of all followed
            contracts together, and the contracts that are silent.
        spot: Returns the price of a stock in dollars, by its symbol and the time (UTC
            nanoseconds).
    """

    def __init__(self, config: SimulatorConfig, spot: Callable[[str, int], float] = swing) -> None:
        self._rate = config.options_rate
        self._silent = config.silent_symbols
        self._spot = spot
        self._random = random.Random(f"{config.seed}/options")  # noqa: S311 - reproducible
        self._wanted: frozenset[str] = frozenset()
        self._listed_on: date | None = None
        self._contracts: tuple[Contract, ...] = ()
        self._quotes: dict[str, SimOptionQuote] = {}
        self._due_so_far = 0
        self._last_ns = 0

    @property
    def symbols(self) -> AbstractSet[str]:
        """Those followed; ``*`` for the listed contracts of the busiest stocks."""
        return self._wanted

    def follow(self, wanted: Mapping[str, AbstractSet[str]]) -> None:
        """Make records of these contracts from now on; there are none of an impossible date."""
        self._wanted = frozenset().union(*wanted.values()) - self._silent
        self._listed_on = None

    def make(self, elapsed_s: float, now_ns: int) -> Iterable[Batch]:
        """The trades and quotes that have come due, at most a second's worth."""
        total = int(self._rate * elapsed_s)
        count = min(total - self._due_so_far, max(_MOST_AT_ONCE, int(self._rate)))
        self._due_so_far = total
        trades, quotes = self.take(count, now_ns)
        return [batch for batch in ((TRADES, trades), (QUOTES, quotes)) if batch[1]]

    def take(self, count: int, now_ns: int) -> tuple[list[SimOptionTrade], list[SimOptionQuote]]:
        """The next ``count`` trades and quotes, with rising times up to ``now_ns``."""
        trades: list[SimOptionTrade] = []
        quotes: list[SimOptionQuote] = []
        self._list(now_ns)
        if not self._contracts:
            return trades, quotes
        first_ns = now_ns - (count - 1) * _STEP_NS
        if first_ns <= self._last_ns <= now_ns + _CLOCK_STEP_NS:
            first_ns = self._last_ns + 1
        for ts_ns in range(first_ns, first_ns + count * _STEP_NS, _STEP_NS):
            self._last_ns = ts_ns
            contract = self._random.choice(self._contracts)
            bits = self._random.getrandbits(48)
            quote = self._quotes.get(contract.symbol)
            if quote is not None and bits & 0xFF < _TRADE_BELOW:
                trades.append(_trade(quote, ts_ns, bits >> 8))
            else:
                spot, widen = self._spot(contract.root, ts_ns), (bits >> 8 & 0xFF) / 256
                quote = theoretical_quote(contract, spot, ts_ns, widen=widen, sizes=bits >> 16)
                self._quotes[contract.symbol] = quote
                quotes.append(quote)
        return trades, quotes

    def _list(self, now_ns: int) -> None:
        """Find the contracts again on a new day, and after :meth:`follow`."""
        today = datetime.fromtimestamp(now_ns / 1e9, _NEW_YORK).date()
        if self._listed_on == today:
            return
        self._listed_on = today
        found: dict[str, Contract] = {}
        if EVERY_SYMBOL in self._wanted:
            for root in tuple(UNIVERSE)[:_BUSIEST]:
                found |= {contract.symbol: contract for contract in chain(root, now_ns)}
        for symbol in sorted(self._wanted - {EVERY_SYMBOL}):
            with suppress(ValueError):
                found[symbol] = Contract.parse(symbol)
        self._contracts = tuple(
            contract for symbol, contract in found.items() if symbol not in self._silent
        )
        self._quotes = {symbol: quote for symbol, quote in self._quotes.items() if symbol in found}


def _trade(quote: SimOptionQuote, ts_ns: int, bits: int) -> SimOptionTrade:
    """A trade at the bid, at the ask, or in the middle."""
    middle = math.floor((quote.bid + quote.ask) / 2 * _CENTS) / _CENTS
    price = (quote.bid or quote.ask, quote.ask, max(middle, quote.bid) or quote.ask)[bits % 3]
    return SimOptionTrade(
        quote.symbol,
        price,
        1 + (bits >> 4 & 0x3F) // (1 + (bits >> 10 & 0x7)),
        ts_ns,
        _EXCHANGES[bits >> 14 & 0xF],
        _CONDITIONS[bits >> 18 & 0x7],
    )


_TRADE = {"t": "ts_event_ns", "p": "price", "s": "size", "x": "exchange", "c": "condition"}
_QUOTE = {
    "t": "ts_event_ns",
    "bx": "bid_exchange",
    "bp": "bid",
    "bs": "bid_size",
    "ax": "ask_exchange",
    "ap": "ask",
    "as": "ask_size",
    "c": "condition",
}
_SYMBOL = {"S": "symbol"}

TRADES: Final[SimKind[SimOptionTrade]] = SimKind(
    OPTIONS, "trades", encoder("t", _SYMBOL | _TRADE, ("p",))
)
QUOTES: Final[SimKind[SimOptionQuote]] = SimKind(
    OPTIONS, "quotes", encoder("q", _SYMBOL | _QUOTE, ("bp", "ap"))
)
_trade_row = rower(_TRADE, ("p",))
_quote_row = rower(_QUOTE, ("bp", "ap"))


def _spot(records: Records) -> Callable[[str, int], float]:
    """The middle of the stock's last quote; without a quote, :func:`swing`."""
    stocks = records.get(STOCK_QUOTES)

    def price(root: str, ts_ns: int) -> float:
        quote = stocks.latest(root) if stocks is not None else None
        if quote is None or not quote.bid or not quote.ask:
            return swing(root, ts_ns)
        middle: float = (quote.bid + quote.ask) / 2
        return middle

    return price


def _source(config: SimulatorConfig, records: Records) -> Source | None:
    if not config.rate or not config.options_rate:
        return None
    return OptionsSource(config, _spot(records))


def _bars(trades: Iterable[SimOptionTrade], *, days: bool) -> Iterator[SimBar]:
    """The bars of one contract's trades, of days in New York or of minutes."""
    tallies: dict[tuple[str, int], Tally] = {}
    for trade in trades:
        ts_ns = trade.ts_event_ns
        start_ns = day_start_ns(ts_ns) if days else ts_ns - ts_ns % MINUTE_NS
        tally = tallies.setdefault((trade.symbol, start_ns), Tally())
        tally.add(ts_ns, round(trade.price * _CENTS), trade.size)
    for (symbol, start_ns), tally in tallies.items():
        yield tally.bar(symbol, start_ns, _CENTS)


class _Rest:
    """What REST answers about options; every method takes a call."""

    def __init__(self, records: Records, rules: RestRules) -> None:
        feeds = frozenset(("opra", "indicative"))
        self._records = records
        self._spot = _spot(records)
        self._rules = attrs.evolve(
            rules,
            default_feed="opra",
            history_feeds=feeds,
            latest_feeds=feeds,
            has_symbol=OPTIONS.has_symbol,
        )

    def routes(self) -> Mapping[str, Answer]:
        """The answers by path."""
        return {
            "/v1beta1/options/trades": self.trades,
            "/v1beta1/options/bars": self.bars,
            "/v1beta1/options/quotes/latest": partial(self.latest, kind=QUOTES),
            "/v1beta1/options/trades/latest": partial(self.latest, kind=TRADES),
            "/v1beta1/options/snapshots": self.snapshots,
            "/v1beta1/options/snapshots/": self.snapshots,
        }

    def trades(self, call: Call) -> bytes:
        """A page of the trades."""
        query = parse_history(call.params, self._rules, call.now_ns)
        return answer_history(self._records[TRADES], query, TRADES.channel, _trade_row)

    def bars(self, call: Call) -> bytes:
        """A page of the bars that add up from the trades."""
        days = wants_days(call.params)
        query = parse_history(call.params, self._rules, call.now_ns)
        trades = self._records[TRADES]
        built: MarketRecord[SimBar] = MarketRecord(len(trades.records))
        for symbol in query.symbols:
            every = trades.between(symbol, 0, LATEST_NS, most=len(trades.records))
            built.add(list(_bars(every, days=days)))
        return answer_history(built, query, "bars", bar_row)

    def latest(self, call: Call, kind: SimKind[Any]) -> bytes:
        """The newest record of each contract."""
        symbols = parse_latest(call.params, self._rules)
        row = _quote_row if kind is QUOTES else _trade_row
        return answer_latest(self._records[kind], symbols, kind.channel, row)

    def snapshots(self, call: Call) -> bytes:
        """The contracts that are named, or the chain of the stock in the path.

        A contract that was never quoted has the market makers' quote of now.
        """
        found = {}
        if call.name:
            for contract in chain(call.name, call.now_ns):
                if _fits(contract, call.params):
                    found[contract.symbol] = contract
        else:
            for symbol in parse_latest(call.params, self._rules):
                with suppress(ValueError):
                    found[symbol] = Contract.parse(symbol)
        limit = limit_parameter(call.params, _LISTED_LIMIT, _MOST_LISTED)
        after = call.params.get("page_token", "")
        symbols = [symbol for symbol in sorted(found) if symbol > after]
        page = symbols[:limit]
        return msgspec.json.encode(
            {
                "snapshots": {
                    symbol: self._snapshot(found[symbol], call.now_ns) for symbol in page
                },
                "next_page_token": page[-1] if len(symbols) > limit else None,
            }
        )

    def _snapshot(self, contract: Contract, now_ns: int) -> dict[str, Any]:
        trade = self._records[TRADES].latest(contract.symbol)
        quote = self._records[QUOTES].latest(contract.symbol)
        price, sigma = self._spot(contract.root, now_ns), volatility(contract)
        if quote is None:
            quote = theoretical_quote(contract, price, now_ns)
        snapshot = {
            "latestQuote": _quote_row(quote),
            "impliedVolatility": round(sigma, 4),
            "greeks": greeks(contract, price, contract.years_left(now_ns), sigma),
        }
        return snapshot if trade is None else {**snapshot, "latestTrade": _trade_row(trade)}


def _fits(contract: Contract, params: Mapping[str, str]) -> bool:
    """Whether a request for a chain asks for this contract."""
    try:
        least = float(params.get("strike_price_gte") or 0)
        most = float(params.get("strike_price_lte") or math.inf)
    except ValueError:
        malformed("invalid strike price")
    wanted = params.get("type") or ("call" if contract.is_call else "put")
    expiry = contract.expiry.isoformat()
    return (
        least <= contract.strike <= most
        and wanted == ("call" if contract.is_call else "put")
        and (params.get("expiration_date") or expiry) == expiry
        and (params.get("expiration_date_gte") or expiry) <= expiry
        and (params.get("expiration_date_lte") or expiry) >= expiry
        and (params.get("root_symbol") or contract.root) == contract.root
    )


OPTIONS_MARKET: Final = SimMarket(
    (TRADES, QUOTES), _source, lambda records, rules: _Rest(records, rules).routes()
)
