"""What stands in Redis, as raw text made by the code that writes it."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

import attrs

from docs.generate.answers import AT_NS, QUOTE
from docs.generate.text import fence
from mdservice.feed.alpaca.error_codes import refusal
from mdservice.model.events import FeedState, FeedStatus, encode_status
from mdservice.model.kinds import QUOTES
from mdservice.model.payload import encode_quote
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.alerts import Alert, encode_alert
from mdservice.pnl.breaker import encode_breaker, reset_at, tripped_by
from mdservice.pnl.rules import parse_rule
from mdservice.positions.trade_updates import TradeUpdate, encode_account_update
from mdservice.publish.store import Events, WriteBatch
from mdservice.redis_io.commands import BatchPacker
from mdservice.redis_io.names import RedisNames
from mdservice.router.gaps import Gaps

__all__ = [
    "account_messages",
    "alert_message",
    "breaker_messages",
    "price_message",
    "reader_rights",
    "rights",
    "status_messages",
    "transaction",
]

_S = 1_000_000_000
_OPTION = "AAPL261218C00200000"
_REASON = "the connection was closed by the other side"


def _fences(messages: Iterable[bytes]) -> str:
    return "\n\n".join(fence("json", message.decode()) for message in messages)


def price_message() -> str:
    """The price object: a usual one, one with a side missing, one without any."""
    quotes = (
        QUOTE,
        Quote("MSFT", 0.0, 431.2, 0, 1, AT_NS, AT_NS, 7),
        Quote("ZVZZT", 0.0, 0.0, 0, 0, AT_NS, AT_NS, 1),
    )
    return _fences(encode_quote(quote) for quote in quotes)


def status_messages() -> str:
    """One message of each state, in the order of a bad day."""
    lost_ns, back_ns, filled_ns = AT_NS + 2 * _S, AT_NS + 4 * _S, AT_NS + 5 * _S
    gaps = Gaps("quotes")
    gaps.lost(AT_NS, ["AAPL", "MSFT"])
    [gap] = gaps.resumed(back_ns, ["AAPL", "MSFT"], (), lambda _: AT_NS, repairing=True)
    [repaired] = gaps.filled(filled_ns, AT_NS, {"AAPL": 12, "MSFT": 2}, ["AAPL", "MSFT"])
    options = Gaps("quotes")
    options.lost(AT_NS, [_OPTION])
    options.resumed(back_ns, [_OPTION], (), lambda _: AT_NS, repairing=False, refreshing=True)
    [refreshed] = options.refreshed([_OPTION], ())
    told: list[tuple[FeedState, int, dict[str, object]]] = [
        ("connected", AT_NS - 60 * _S, {"driver": "alpaca-py"}),
        ("stale", lost_ns, {"reason": "no market data for 30 s, while AAPL has a newer quote"}),
        ("disconnected", lost_ns, {"reason": _REASON}),
        ("fallback", back_ns, {"driver": "websockets", "reason": _REASON}),
        ("connected", back_ns, {"driver": "websockets"}),
        ("gap", back_ns, gap),
        ("gap_repaired", filled_ns, repaired),
        (
            "takeover",
            filled_ns + 300 * _S,
            {"leader": "trader2 (process 4712)", "epoch": 2, "refreshed": True},
        ),
        ("fatal", filled_ns + 600 * _S, {"reason": str(refusal(402, "auth failed")), "code": 402}),
    ]
    messages = [FeedStatus(state, at, more) for state, at, more in told]
    messages.insert(-1, FeedStatus("gap", filled_ns, refreshed, "options"))
    return _fences(encode_status(message) for message in messages)


def rights() -> str:
    """The rules of a user who may do all that the service, its readers and the gateway do."""
    return fence("text", f"ACL SETUSER desk on >PASSWORD {RedisNames().rights()}")


def reader_rights() -> str:
    """The rules of a user who may only read."""
    return fence("text", f"ACL SETUSER reader on >PASSWORD {RedisNames().rights(reader=True)}")


def account_messages() -> str:
    """A fill that adds to a position, and one that closes one."""
    bought = TradeUpdate(
        event="fill",
        timestamp_ns=AT_NS,
        symbol="AAPL",
        order_id="904837e3-3b76-47ec-b432-046db621571b",
        execution_id="cd6f0d24-0b9c-4a6e-a06c-6a4c1f9f0fd2",
        side="buy",
        qty=Decimal(10),
        price=Decimal("187.13"),
        position_qty=Decimal(30),
    )
    sold = attrs.evolve(
        bought,
        symbol="BTC/USD",
        order_id="61e69015-8549-4bfd-b9c3-01e75843f47d",
        execution_id="2f63ea93-423d-4169-b3f6-3fdafc10c418",
        side="sell",
        qty=Decimal("0.5"),
        price=Decimal("60412.5"),
        position_qty=Decimal(0),
    )
    held = Position("AAPL", Decimal(30), Decimal("162.376666667"), lastday_price=Decimal("185.40"))
    return _fences((encode_account_update(bought, held), encode_account_update(sold, None)))


def alert_message() -> str:
    """A crossing of one rule of each sort."""
    found = (
        ("AAPL pnl < -500", "AAPL", "-512.35"),
        ("total pct < -2.5 hysteresis 1", "total", "-2.5311"),
        ("* stale", "MSFT", "60.000412345"),
    )
    messages = []
    for text, symbol, value in found:
        rule = parse_rule(text)
        messages.append(encode_alert(Alert.of(rule, symbol, Decimal(value), AT_NS)))
    return _fences(messages)


def breaker_messages() -> str:
    """A tripped breaker, and one that was reset."""
    rule = parse_rule("AAPL qty > 100")
    tripped = tripped_by(Alert.of(rule, "AAPL", Decimal(120), AT_NS))
    return _fences(map(encode_breaker, (tripped, reset_at(AT_NS + 600 * _S))))


def transaction() -> str:
    """The commands of a batch with one event, as the server gets them."""
    event = encode_quote(QUOTE)
    packer = BatchPacker(
        price_ttl_s=300, event_log="price.log", event_log_maxlen=100_000, instance="6f1c…"
    )
    packer.marks_db = 0
    events = Events(QUOTES.event, [event], QUOTES, ["AAPL"])
    batch = WriteBatch(8, {QUOTES: {"AAPL": event}}, [events])
    short = event.decode()[:17] + "…}"
    words = packer.batch(batch).data.decode().replace(event.decode(), short)
    return fence("text", "\n".join(_commands(words.split("\r\n"))))


def _commands(lines: list[str]) -> list[str]:
    """``*2``, ``$4``, ``PING``, ``$1``, ``x`` → ``PING x``."""
    commands: list[str] = []
    for place, line in enumerate(lines):
        if line.startswith("*") and line[1:].isdigit():
            commands.append("")
        elif place and lines[place - 1].startswith("$"):
            commands[-1] = f"{commands[-1]} {line}".strip()
    return commands
