"""A quote, and the price that follows from it."""

from __future__ import annotations

from decimal import Context, Decimal

import attrs

from mdservice.model.timestamps import format_ns
from mdservice.model.written import NOT_WRITTEN

__all__ = ["Identity", "Quote", "exact_mid", "identity", "mid_e5", "mid_number"]


class _Read:
    """The slot of a quote that was read from a text; of any other quote it is empty.

    It is no field of attrs: setting one would cost every quote of the feed, and a changed copy
    must not have the old text.
    """

    __slots__ = ("written_time",)
    written_time: str
    """``timestamp`` in the text, if it has the form of :func:`format_ns`."""


@attrs.define(eq=True)
class Quote(_Read):
    """Best bid and offer of one symbol at one moment, as Alpaca sent them.

    Not frozen, because the router numbers accepted quotes in place: a second object per quote
    would cost more than all of the routing. After that, nothing changes a quote.

    Attributes:
        symbol: ``AAPL``.
        bid: Best bid in the feed's currency; 0 means that no bid is active.
        ask: Best offer; 0 means that no offer is active.
        bid_size: Shares wanted at ``bid``.
        ask_size: Shares offered at ``ask``.
        ts_event_ns: The exchange's time of the quote, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: Its number among the accepted quotes of its symbol since the service started, from
            1; 0 until it is accepted.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    symbol: str
    bid: float
    ask: float
    bid_size: int | float
    ask_size: int | float
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)

    @property
    def price(self) -> Decimal | None:
        """The exact decimal mid; the only active side where there is one; None without any."""
        return exact_mid(self.bid, self.ask)

    @property
    def timestamp(self) -> str:
        """``ts_event_ns`` as RFC 3339 text with all nanoseconds."""
        return getattr(self, "written_time", None) or format_ns(self.ts_event_ns)


Identity = tuple[str, int, float, float, int | float, int | float]


def identity(quote: Quote) -> Identity:
    """The values that make a quote from history equal to one from the stream."""
    return (
        quote.symbol,
        quote.ts_event_ns,
        quote.bid,
        quote.ask,
        quote.bid_size,
        quote.ask_size,
    )


_EXACT = Context(prec=700)
"""Enough digits for the sum of any two doubles, so that nothing is rounded."""


def exact_mid(bid: float, ask: float) -> Decimal | None:
    """The mid of two prices as their decimal texts say, without float residue.

    0.1 and 0.2 give 0.15. A price of 0 means that the side has no quote: the result is then the
    other side, or None if both are 0.
    """
    if bid and ask:
        total = _EXACT.add(Decimal(repr(bid)), Decimal(repr(ask)))
        return _EXACT.divide(total, Decimal(2))
    if bid or ask:
        return Decimal(repr(bid or ask))
    return None


_SCALE = 10_000.0
_DOUBLE_SCALE = 20_000.0
_ROUND = 1.5 * 2**52
"""Adding and then subtracting it rounds half-even as round() does, in half the time, because
doubles of this size have no fraction. Exact below 2**51; scaled prices are below 1e13."""
_EXACT_BELOW = 1e9


def mid_number(bid: float, ask: float) -> float | Decimal | None:
    """:func:`exact_mid` as a number whose JSON text is the exact decimal, ten times as fast.

    Prices of at most four decimals below a thousand million, which is all that an exchange
    sends, have a mid of at most fifteen digits, and the nearest float then prints as that
    decimal. All other prices use decimal arithmetic.
    """
    if bid and ask:
        if -_EXACT_BELOW < bid < _EXACT_BELOW and -_EXACT_BELOW < ask < _EXACT_BELOW:
            scaled_bid = bid * _SCALE + _ROUND - _ROUND
            scaled_ask = ask * _SCALE + _ROUND - _ROUND
            if scaled_bid / _SCALE == bid and scaled_ask / _SCALE == ask:
                return (scaled_bid + scaled_ask) / _DOUBLE_SCALE
        return exact_mid(bid, ask)
    return bid or ask or None


def mid_e5(bid: float, ask: float) -> int | None:
    """:func:`exact_mid` in hundred-thousandths, which are integers for all that an exchange sends.

    None for other prices: more than four decimals, a thousand million or more, or both 0.
    """
    if 0.0 <= bid < _EXACT_BELOW and 0.0 <= ask < _EXACT_BELOW:
        scaled_bid = bid * _SCALE + _ROUND - _ROUND
        scaled_ask = ask * _SCALE + _ROUND - _ROUND
        if scaled_bid / _SCALE == bid and scaled_ask / _SCALE == ask:
            scaled = int(scaled_bid + scaled_ask)
            return (scaled * 5 if bid and ask else scaled * 10) or None
    return None
