"""How a simulator is set up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from decimal import Decimal
from typing import Any

import attrs
from attrs import validators

from mdservice.simulator.faults import Planned
from mdservice.simulator.market import UNIVERSE, Market, Shape
from mdservice.simulator.positions import Trader, parse_positions
from mdservice.simulator.rest_history import HISTORY_FEEDS, LATEST_FEEDS, RestRules
from mdservice.simulator.session import Account, SessionRules
from mdservice.simulator.tape import TapeRules
from mdservice.simulator.wire import to_decimal

__all__ = ["SimulatorConfig"]

_MIB = 1 << 20
_TRADED = tuple(UNIVERSE)[:12]
"""What the trader opens positions of, besides those of the start."""


def _frozenset(items: Iterable[Any]) -> frozenset[Any]:
    return frozenset(items)


def _positive(default: float) -> Any:
    return attrs.field(default=default, validator=validators.gt(0))


def _not_negative(default: float) -> Any:
    return attrs.field(default=default, validator=validators.ge(0))


def _ratio(default: float) -> Any:
    return attrs.field(default=default, validator=[validators.ge(0), validators.le(1)])


def _every(default_s: float | None) -> Any:
    return attrs.field(default=default_s, validator=validators.optional(validators.gt(0)))


def _limit(default: int | None, least: int) -> Any:
    return attrs.field(default=default, validator=validators.optional(validators.ge(least)))


def _names(default: Iterable[str] = ()) -> Any:
    return attrs.field(default=default, converter=_frozenset)


@attrs.frozen(kw_only=True)
class SimulatorConfig:
    """Everything about one simulator. The defaults give a lively market without faults.

    Attributes:
        seed: Of all prices, and of the order of the symbols.
        rate: Mean quotes per second, shared by the subscribed symbols. With 0, no market of any
            feed makes records by itself; only :meth:`Simulator.send_quotes` and
            :meth:`Simulator.send_records` do.
        crypto_rate: Mean changes of order books per second, likewise; about three in ten are
            trades. 0 for none.
        options_rate: Mean quotes and trades of options per second, likewise.
        news_every_s: Mean seconds between two news articles; None for none.
        shape: ``day`` bursts at open and close, ``flat`` does not; the mean is ``rate``.
        day_s: Length of a ``day``; it opens with the first subscription.
        slice_s: How often quotes are made and sent.
        quotes_per_frame: The most quotes in one frame.
        zipf: How uneven the symbols' shares of the rate are: 0 all alike.
        weights: Shares of single symbols, by symbol, in the place of those.
        exchanges: Exchange codes to draw from.
        trades_per_quote: Trades of a symbol for each of its quotes, 0 to 1, while a client
            subscribes to it in any other channel than ``quotes``.
        late_trade_ratio: The fraction of these trades that is reported 1 to 20 s late. Of the
            trades of crypto, the fraction that comes after the bar of its minute.
        correction_ratio: The fraction of trades that is corrected, some seconds later.
        cancel_ratio: The fraction of trades that is canceled, likewise.
        imbalance_ratio: The fraction of trades that comes with an imbalance.
        halt_every_s: Mean seconds between two halts, of any symbols; None for no halts but those of
            the script.
        halt_s: How long a halt takes.
        zero_side_ratio: The fraction of quotes that has one side without a price.
        silent_symbols: Acknowledged when subscribed to, yet never quoted.
        key: The key that is accepted; None accepts any that is not empty.
        secret: Likewise.
        connection_limit: Sessions at once for one key and path; None for any number.
        slot_hold_s: How long a session that ended without a closing handshake keeps its slot
            (about 90 s at Alpaca).
        symbol_limit: (channel, symbol) pairs a session may subscribe to; ``*`` counts as one.
        option_quotes_limit: Options of which a session may subscribe to quotes (200 on Alpaca's
            free plan); None for any number.
        invalid_symbols: Symbols that make a request invalid syntax (400).
        ignored_symbols: Symbols that are left out of the acknowledgement, without an error.
        closing_codes: Errors after which the server hangs up (inferred from reports).
        auth_timeout_s: Time for the login, from the connection on.
        close_timeout_s: Time for a closing handshake before the line is cut.
        send_buffer_bytes: What may wait for one client before it is cut off as slow (407).
        compression: Whether permessage-deflate is accepted.
        most_connections: Beyond it an upgrade gets 503.
        history_size: Quotes kept in :attr:`Simulator.history`, which is REST's, and in
            :attr:`Simulator.sent`.
        received_size: Messages kept in :attr:`Simulator.received`, and requests in
            :attr:`Simulator.rest_requests`.
        rest_rate_limit: REST calls per key and minute (200 on Alpaca's free plan); None for
            any number, without the headers.
        rest_lag_s: Quotes of the last so many seconds are not in REST's history yet; they are
            in its latest quotes.
        rest_page_size: The most quotes in one page, however many are asked for.
        history_feeds: Feeds of which REST has a history, the same for all.
        latest_feeds: Feeds of which REST has latest quotes.
        refuse_recent_sip: The last 15 minutes of the feed sip are refused, as on Alpaca's free
            plan (403, 42210000).
        positions: The account's at the start, by symbol: shares, below 0 for a short position,
            and average price in dollars.
        cash: The account's at the start, dollars.
        sale_fee: The fee of each sale, as a part of its value; rounded up to the cent.
        coin_fee: The fee of each purchase of crypto, as a part of the coins, which it takes.
        fills_per_order: In how many parts each order is filled.
        fill_every_s: Seconds between the parts, and before the first; None for all at once.
        text_updates: Whether trade updates come in text frames, as on the live account, and not
            in binary ones, as on paper.
        trade_every_s: Seconds between seeded trades that open, change and close positions; None
            for none.
        faults: The script.
    """

    seed: int = 1
    rate: float = _not_negative(200.0)
    crypto_rate: float = _not_negative(50.0)
    options_rate: float = _not_negative(50.0)
    news_every_s: float | None = _every(10.0)
    shape: Shape = attrs.field(default="day", validator=validators.in_(("day", "flat")))
    day_s: float = _positive(600.0)
    slice_s: float = _positive(0.025)
    quotes_per_frame: int = attrs.field(default=500, validator=validators.ge(1))
    zipf: float = _not_negative(0.9)
    weights: Mapping[str, float] = attrs.field(factory=dict)
    exchanges: tuple[str, ...] = attrs.field(
        default=("V", "Q", "N", "P", "K", "Z"), converter=tuple, validator=validators.min_len(1)
    )
    zero_side_ratio: float = _ratio(0.0)
    trades_per_quote: float = _ratio(0.15)
    late_trade_ratio: float = _ratio(0.002)
    correction_ratio: float = _ratio(0.0005)
    cancel_ratio: float = _ratio(0.0005)
    imbalance_ratio: float = _ratio(0.002)
    halt_every_s: float | None = _every(600.0)
    halt_s: float = _positive(20.0)
    silent_symbols: AbstractSet[str] = _names()
    key: str | None = attrs.field(default=None, repr=False)
    secret: str | None = attrs.field(default=None, repr=False)
    connection_limit: int | None = _limit(1, 1)
    slot_hold_s: float = _not_negative(0.0)
    symbol_limit: int | None = _limit(None, 0)
    option_quotes_limit: int | None = _limit(200, 0)
    invalid_symbols: AbstractSet[str] = _names()
    ignored_symbols: AbstractSet[str] = _names()
    closing_codes: AbstractSet[int] = attrs.field(
        default=frozenset((402, 404, 406, 407)), converter=_frozenset
    )
    auth_timeout_s: float = _positive(10.0)
    close_timeout_s: float = _positive(1.0)
    send_buffer_bytes: int = attrs.field(default=4 * _MIB, validator=validators.ge(1))
    compression: bool = True
    most_connections: int = attrs.field(default=100, validator=validators.ge(1))
    history_size: int = _not_negative(100_000)
    received_size: int = _not_negative(1_000)
    rest_rate_limit: int | None = _limit(200, 0)
    rest_lag_s: float = _not_negative(0.0)
    rest_page_size: int = attrs.field(
        default=10_000, validator=[validators.ge(1), validators.le(10_000)]
    )
    history_feeds: AbstractSet[str] = _names(HISTORY_FEEDS)
    latest_feeds: AbstractSet[str] = _names(LATEST_FEEDS)
    refuse_recent_sip: bool = False
    positions: Mapping[str, tuple[Decimal, Decimal]] = attrs.field(
        default=(), converter=parse_positions
    )
    cash: Decimal = attrs.field(default=Decimal(100_000), converter=to_decimal)
    sale_fee: Decimal = attrs.field(
        default=Decimal(0),
        converter=to_decimal,
        validator=[validators.ge(Decimal(0)), validators.le(Decimal(1))],
    )
    coin_fee: Decimal = attrs.field(
        default=Decimal(0),
        converter=to_decimal,
        validator=[validators.ge(Decimal(0)), validators.le(Decimal(1))],
    )
    fills_per_order: int = attrs.field(
        default=1, validator=[validators.ge(1), validators.le(1_000)]
    )
    fill_every_s: float | None = _every(None)
    text_updates: bool = False
    trade_every_s: float | None = _every(None)
    faults: tuple[Planned, ...] = attrs.field(default=(), converter=tuple)

    def account(self) -> Account:
        """The account that clients log in to."""
        return Account(self.key, self.secret, self.connection_limit, self.slot_hold_s)

    def rules(self) -> SessionRules:
        """What a session may do."""
        return SessionRules(
            symbol_limit=self.symbol_limit,
            option_quotes_limit=self.option_quotes_limit,
            invalid_symbols=self.invalid_symbols,
            ignored_symbols=self.ignored_symbols,
            closing_codes=self.closing_codes,
        )

    def rest_rules(self) -> RestRules:
        """What may be asked of REST."""
        return RestRules(
            history_feeds=self.history_feeds,
            latest_feeds=self.latest_feeds,
            invalid_symbols=self.invalid_symbols,
            page_size=self.rest_page_size,
            lag_s=self.rest_lag_s,
            refuse_recent_sip=self.refuse_recent_sip,
        )

    def trader(self) -> Trader:
        """Who makes the seeded trades, before the first of them."""
        return Trader(self.seed, (*self.positions, *_TRADED), len(self.positions))

    def tape_rules(self) -> TapeRules:
        """What the market of stocks reports besides quotes."""
        return TapeRules(
            seed=self.seed,
            exchanges=self.exchanges,
            trades_per_quote=self.trades_per_quote,
            late_trade_ratio=self.late_trade_ratio,
            correction_ratio=self.correction_ratio,
            cancel_ratio=self.cancel_ratio,
            imbalance_ratio=self.imbalance_ratio,
            halt_every_s=self.halt_every_s,
            halt_s=self.halt_s,
        )

    def market(self) -> Market:
        """The market, before its first quote."""
        return Market(
            seed=self.seed,
            rate=self.rate,
            shape=self.shape,
            day_s=self.day_s,
            zipf=self.zipf,
            weights=self.weights,
            exchanges=self.exchanges,
            zero_side_ratio=self.zero_side_ratio,
        )
