"""Trades, and the corrections and cancellations of trades."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import attrs
import msgspec

from mdservice.model.timestamps import new_york_day
from mdservice.model.written import NOT_WRITTEN, WrittenForm

__all__ = [
    "CANCELS_FORM",
    "CORRECTIONS_FORM",
    "TRADES_FORM",
    "Cancel",
    "Correction",
    "Trade",
    "TradeId",
    "cancel_identity",
    "changed_trade",
    "correction_identity",
    "trade_identity",
]

TradeId = int | str


@attrs.define
class Trade:
    """One trade, as Alpaca sent it.

    Attributes:
        symbol: ``AAPL``, ``BTC/USD`` or ``AAPL261218C00200000``.
        price: In the feed's currency.
        size: Shares, coins or contracts.
        exchange: The exchange's code; None for crypto.
        conditions: The conditions' codes; an option's single one alone.
        tape: ``A``, ``B``, ``C``, ``N`` or ``O``; None for crypto and options.
        id: Unique for the symbol, exchange, tape and New York date; None for options.
        ts_event_ns: The exchange's time of the trade, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: Its number among the accepted trades of its symbol since the service started, from 1;
            0 until it is accepted.
        taker_side: Who took the offer, ``buy`` or ``sell``, None where that is not known; UNSET
            where the asset class has none.
        newest: Whether it was its symbol's newest trade by time when it was accepted. A late trade
            is published, but is not its symbol's latest value.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    symbol: str
    price: float
    size: int | float
    exchange: str | None
    conditions: tuple[str, ...]
    tape: str | None
    id: TradeId | None
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    taker_side: Literal["buy", "sell"] | msgspec.UnsetType | None = msgspec.UNSET
    newest: bool = attrs.field(default=True, eq=False, metadata=NOT_WRITTEN)
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)


def trade_identity(trade: Trade) -> Hashable:
    """The values that make a trade from history equal to one from the stream.

    An option's trade has no id, so its content counts.
    """
    if trade.id is not None:
        return _identified(trade.symbol, trade.exchange, trade.tape, trade.id, trade.ts_event_ns)
    return (
        trade.symbol,
        trade.ts_event_ns,
        trade.price,
        trade.size,
        trade.exchange,
        trade.conditions,
    )


def _identified(
    symbol: str, exchange: str | None, tape: str | None, trade_id: TradeId, ts_ns: int
) -> Hashable:
    if exchange is None:  # crypto: its ids do not start again each day
        return symbol, trade_id
    return symbol, exchange, tape, trade_id, new_york_day(ts_ns)


@attrs.define
class Correction:
    """A trade that was wrong, and what is right.

    Attributes:
        symbol: ``AAPL``.
        exchange: The exchange's code, of both trades.
        tape: ``A``, ``B`` or ``C``.
        original_id: The id of the wrong trade, by which to find it.
        original_price, original_size, original_conditions: Of the wrong trade.
        corrected_id: The id of the right trade.
        corrected_price, corrected_size, corrected_conditions: Of the right trade.
        ts_event_ns: The exchange's time of the correction, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: As for every record.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    symbol: str
    exchange: str | None
    tape: str | None
    original_id: TradeId | None
    original_price: float | None
    original_size: int | float | None
    original_conditions: tuple[str, ...]
    corrected_id: TradeId | None
    corrected_price: float | None
    corrected_size: int | float | None
    corrected_conditions: tuple[str, ...]
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)


@attrs.define
class Cancel:
    """A trade that did not take place.

    Attributes:
        symbol: ``AAPL``.
        exchange: The exchange's code.
        tape: ``A``, ``B`` or ``C``.
        id: The id of the trade, by which to find it.
        price, size: Of the trade.
        action: ``cancel``, or ``error`` where the trade was entered by mistake.
        ts_event_ns: The exchange's time of the cancellation, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: As for every record.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    symbol: str
    exchange: str | None
    tape: str | None
    id: TradeId | None
    price: float | None
    size: int | float | None
    action: Literal["cancel", "error"] | None
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)


def correction_identity(correction: Correction) -> Hashable:
    """The values that make two corrections equal."""
    return (
        correction.symbol,
        correction.ts_event_ns,
        correction.exchange,
        correction.tape,
        correction.original_id,
        correction.corrected_id,
        correction.corrected_price,
        correction.corrected_size,
        correction.corrected_conditions,
    )


def cancel_identity(cancel: Cancel) -> Hashable:
    """The values that make two cancellations equal."""
    return (
        cancel.symbol,
        cancel.ts_event_ns,
        cancel.exchange,
        cancel.tape,
        cancel.id,
        cancel.action,
    )


def changed_trade(change: Correction | Cancel) -> Hashable | None:
    """The :func:`trade_identity` of the trade that is corrected or canceled; None without an id.

    A trade is corrected or canceled on its own New York date.
    """
    trade_id = change.id if isinstance(change, Cancel) else change.original_id
    if trade_id is None:
        return None
    return _identified(change.symbol, change.exchange, change.tape, trade_id, change.ts_event_ns)


TRADES_FORM = WrittenForm(Trade)
CORRECTIONS_FORM = WrittenForm(Correction)
CANCELS_FORM = WrittenForm(Cancel)
