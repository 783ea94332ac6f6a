"""Positions and activities of the account: from files, URLs, Alpaca, its trading stream and Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from mdservice.errors import AccountUnavailable, PositionsRefused, PositionsUnavailable
from mdservice.pnl.encode import encode_position
from mdservice.positions.activities import parse_account, parse_activities
from mdservice.positions.parse import parse_positions
from mdservice.positions.sources import _multiplier, read_answer
from mdservice.positions.trade_updates import (
    decode_account_update,
    encode_account_update,
    parse_trade_updates,
    position_after,
)
from mdservice.positions.trading_stream import _as, _Authorization, _decode_envelope, _Listening

__all__ = ["run", "seeds"]


def run(data: bytes) -> None:
    """The first byte chooses the reader."""
    if data:
        _READERS[data[0] % len(_READERS)](data[1:])


def _positions(content: bytes) -> None:
    try:
        found = parse_positions(content)
    except (PositionsUnavailable, PositionsRefused):
        return
    total = 0
    for position in found:
        msgspec.json.decode(encode_position(position))
        if position.problem is None:
            assert position.qty is not None
            total += position.qty * position.multiplier  # type: ignore[assignment]
            assert position.symbol


def _answer(content: bytes) -> None:
    with contextlib.suppress(PositionsUnavailable, PositionsRefused):
        read_answer(int.from_bytes(content[:2], "big") % 600, content[2:], "url", "check", "x")
    _multiplier(content)


def _updates(content: bytes) -> None:
    try:
        updates = parse_trade_updates(msgspec.Raw(content))
    except ValueError:
        return
    held = None
    for update in updates:
        assert update.identity
        assert update.is_fill in (True, False)
        _ = update.priced_by, update.change
        if update.position_qty is not None:
            held = position_after(held, update)
        written = encode_account_update(update, held)
        again, _held = decode_account_update(written)
        assert again.identity == update.identity


def _message(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_account_update(content)


def _envelope(content: bytes) -> None:
    try:
        message = _decode_envelope(content)
    except (ValueError, RecursionError):  # as TradingLink translates them
        return
    _as(_Authorization, message)
    _as(_Listening, message)


def _activities(content: bytes) -> None:
    for currency in ("USD", "EUR"):
        try:
            found, ids = parse_activities(content, "url", currency)
        except AccountUnavailable:
            continue
        assert len(ids) >= len(found.fills)


def _account(content: bytes) -> None:
    with contextlib.suppress(AccountUnavailable):
        parse_account(content, "url")


_READERS: Final[tuple[Callable[[bytes], None], ...]] = (
    _positions,
    _answer,
    _updates,
    _message,
    _envelope,
    _activities,
    _account,
)


def seeds() -> Iterator[bytes]:
    """Rows, events and answers of Alpaca's form."""
    row: dict[str, Any] = {
        "symbol": "AAPL",
        "qty": "10",
        "avg_entry_price": "150.00",
        "side": "long",
        "asset_class": "us_equity",
        "current_price": "187.1",
        "lastday_price": 186,
    }
    local = {**row, "swap_rate": "1.1", "usd": {"avg_entry_price": "1"}, "currency": "EUR"}
    rows = [row, local, {**row, "side": "PositionSide.SHORT"}, {"symbol": None}, 7]
    yield b"\x00" + msgspec.json.encode(rows)
    yield b"\x00" + msgspec.json.encode({"positions": rows})
    yield b'\x00[{"symbol":"A","qty":NaN,"avg_entry_price":-Infinity}]'
    yield b"\x00" + b"\xff\xfe" + '[{"symbol":"A"}]'.encode("utf-16-le")
    yield b"\x01\x00\xc8" + msgspec.json.encode(rows)
    event: dict[str, Any] = {
        "event": "fill",
        "timestamp": "2026-11-20T15:51:44.208912345Z",
        "execution_id": "x",
        "price": "187.13",
        "qty": "10",
        "position_qty": "30",
        "order": {"id": "o", "symbol": "AAPL", "side": "buy", "asset_class": "us_equity"},
    }
    yield b"\x02" + msgspec.json.encode(event)
    legs = [{"symbol": "A", "qty": "1", "price": "2", "position_qty": "3", "side": "sell"}]
    order = {"symbol": "", "legs": [{"id": "l", "symbol": "A", "side": "sell"}]}
    more = {"order": order, "legs": legs, "position_qtys": {"A": "3", "B": "-4"}}
    yield b"\x02" + msgspec.json.encode({**event, **more})
    (update,) = parse_trade_updates(msgspec.Raw(msgspec.json.encode(event)))
    yield b"\x03" + encode_account_update(update, position_after(None, update))
    yield b"\x03" + encode_account_update(update, None)
    yield b'\x04{"stream":"authorization","data":{"status":"authorized"}}'
    yield b'\x04{"stream":"listening","data":{"streams":["trade_updates"]}}'
    activity: dict[str, Any] = {
        "id": "1::a",
        "activity_type": "FILL",
        "transaction_time": "2026-11-20T15:51:44Z",
        "price": "1.5",
        "qty": "2",
        "side": "buy",
        "symbol": "AAPL",
    }
    fees = {"activity_type": "CFEE", "net_amount": "-0.1", "date": "2026-11-20", "side": None}
    yield b"\x05" + msgspec.json.encode(
        [activity, {**activity, **fees}, {**activity, "activity_type": "OPEXC", "date": "x"}]
    )
    yield b"\x05" + msgspec.json.encode(
        [
            {**activity, "activity_type": name, "net_amount": "3"}
            for name in ("OPTRD", "DIV", "JNLC")
        ]
    )
    yield b'\x06{"id":"a","currency":"USD","equity":"1","last_equity":2,"cash":"x"}'
