"""What the exchanges say about trading in a symbol: halts, price limits, imbalances."""

from __future__ import annotations

from collections.abc import Hashable

import attrs

from mdservice.model.written import NOT_WRITTEN, WrittenForm

__all__ = [
    "IMBALANCES_FORM",
    "LULDS_FORM",
    "STATUSES_FORM",
    "Imbalance",
    "LimitBand",
    "TradingStatus",
    "imbalance_identity",
    "is_halted",
    "limit_band_identity",
    "trading_status_identity",
]


@attrs.define
class TradingStatus:
    """A change of a symbol's trading status, such as a halt.

    CTA (tapes A and B) and UTP (tape C) use different codes.

    Attributes:
        symbol: ``AAPL``.
        status_code: ``H`` is a halt on tape C, ``2`` on tapes A and B.
        status_message: The same in words.
        reason_code: Why: ``T12``.
        reason_message: The same in words.
        tape: ``A``, ``B`` or ``C``.
        ts_event_ns: The exchange's time, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: As for every record.
        newest: Whether it was its symbol's newest status by time when it was accepted.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    symbol: str
    status_code: str | None
    status_message: str | None
    reason_code: str | None
    reason_message: str | None
    tape: str | None
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    newest: bool = attrs.field(default=True, eq=False, metadata=NOT_WRITTEN)
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)


@attrs.define
class LimitBand:
    """The prices between which a symbol may trade (limit up, limit down).

    Attributes:
        symbol: ``AAPL``.
        limit_up: The highest price.
        limit_down: The lowest price.
        indicator: The SIP's code of the message.
        tape: ``A``, ``B`` or ``C``.
        ts_event_ns: The exchange's time, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: As for every record.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    symbol: str
    limit_up: float | None
    limit_down: float | None
    indicator: str | None
    tape: str | None
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)


@attrs.define
class Imbalance:
    """An imbalance of orders in an auction of a symbol.

    Attributes:
        symbol: ``AAPL``.
        price: The reference price.
        tape: ``A``, ``B`` or ``C``.
        ts_event_ns: The exchange's time, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: As for every record.
        newest: Whether it was its symbol's newest imbalance by time when it was accepted.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    symbol: str
    price: float | None
    tape: str | None
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = 0
    newest: bool = attrs.field(default=True, eq=False, metadata=NOT_WRITTEN)
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)


def is_halted(status: TradingStatus) -> bool | None:
    """Whether trading is halted or paused since this status; None if it does not say.

    Source: Alpaca, "Real-time Stock Data", trading statuses of the CTA (tapes A and B) and UTP
    plans. A resumption of quoting (``Q``) is not yet one of trading.
    """
    code, of_cta = status.status_code, status.tape in ("A", "B")
    if code in (("2",) if of_cta else ("H", "P", "Q")):
        return True
    return False if code == ("3" if of_cta else "T") else None


def trading_status_identity(status: TradingStatus) -> Hashable:
    """The values that make two statuses equal."""
    return (
        status.symbol,
        status.ts_event_ns,
        status.status_code,
        status.reason_code,
        status.tape,
    )


def limit_band_identity(band: LimitBand) -> Hashable:
    """The values that make two price limits equal."""
    return band.symbol, band.ts_event_ns, band.limit_up, band.limit_down, band.indicator


def imbalance_identity(imbalance: Imbalance) -> Hashable:
    """The values that make two imbalances equal."""
    return imbalance.symbol, imbalance.ts_event_ns, imbalance.price, imbalance.tape


STATUSES_FORM = WrittenForm(TradingStatus)
LULDS_FORM = WrittenForm(LimitBand)
IMBALANCES_FORM = WrittenForm(Imbalance)
