"""Answers of the HTTP calls as they come, of a service and a gateway with one price."""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import Any

import httpx
import msgspec
import trio

from docs.generate.status import STATUS
from mdservice.http_api.server import create_app
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.status import Status
from mdservice.model.timestamps import parse_rfc3339
from mdservice.pnl.breaker import CLOSED
from mdservice.pnl.day import DayBook, Fill, Start, new_york_date
from mdservice.pnl.encode import encode_day, encode_positions, encode_report, row_texts
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.limits import Limits, encode_risk
from mdservice.pnl.rules import parse_rule
from mdservice.testing.fake_service import FakeService

__all__ = ["AT_NS", "QUOTE", "answers"]

AT_NS = parse_rfc3339("2026-11-20T15:51:44.208912345Z")
QUOTE = Quote("AAPL", 187.12, 187.15, 2, 3, AT_NS, AT_NS, 1042)
"""The quote of every example."""
_HELD = Position("AAPL", Decimal(10), Decimal("150.00"))
_API = "/api/v1/market-data"
_CALLS = (
    ("GET", "/health/ready", {}),
    ("POST", f"{_API}/subscribe", {"symbols": ["AAPL"]}),
    ("GET", f"{_API}/subscriptions", {}),
    ("GET", f"{_API}/prices", {}),
    ("GET", "/status", {}),
)


@cache
def answers() -> dict[str, str]:
    """By method and path; calls whose answers have the same form are left out."""
    found = trio.run(_ask)
    found["GET /api/v1/positions"] = _pretty(encode_positions([_HELD]))
    found["GET /api/v1/positions/pnl/realtime"] = _pretty(_pnl())
    found["GET /api/v1/account/pnl/day"] = _pretty(_day())
    found["GET /api/v1/risk"] = _pretty(_risk())
    check = {"allowed": False, "reasons": ["AAPL qty > 100: AAPL would be at 120"]}
    found["POST /api/v1/risk/check"] = _pretty(msgspec.json.encode(check))
    return found


class _Service(FakeService):
    def status(self) -> Status:
        return STATUS


async def _ask() -> dict[str, str]:
    service = _Service()
    for _ in range(QUOTE.seq):
        service.publish(QUOTE.symbol, QUOTE.bid, QUOTE.ask, ts_event_ns=AT_NS)
    transport: Any = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://mdservice") as client:
        found = {}
        for method, path, body in _CALLS:
            answer = await client.request(method, path, json=body or None)
            found[f"{method} {path}"] = _pretty(answer.content)
        return found


def _pnl() -> bytes:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300, feed_delay_s=0)
    engine.set_positions([_HELD])
    engine.update(QUOTE, AT_NS)
    return encode_report(engine.report_of(row_texts, AT_NS))


def _day() -> bytes:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
    held = Position("AAPL", Decimal(10), Decimal(150), lastday_price=Decimal("185.40"))
    engine.set_positions([held])
    engine.update(QUOTE, AT_NS)
    book = DayBook(new_york_date(AT_NS))
    book.add(Fill("AAPL", Decimal(5), Decimal("186.20"), AT_NS, "1"))
    book.add(Fill("AAPL", Decimal(-5), Decimal("186.90"), AT_NS, "2"))
    book.starts["AAPL"] = Start("AAPL", Decimal(10), Decimal("131.90"))
    day = book.symbol_day("AAPL", [held])
    engine.set_day({"AAPL": day})
    return encode_day(book.date, engine.totals, Decimal("0.02"), [day])


def _risk() -> bytes:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
    engine.set_positions([_HELD])
    engine.update(QUOTE, AT_NS)
    limits = Limits(map(parse_rule, ("AAPL qty > 100", "total exposure > 50000")))
    limits.check(engine, AT_NS)
    return encode_risk(CLOSED, limits.states(engine, AT_NS), limits.blind())


def _pretty(body: bytes) -> str:
    return msgspec.json.format(body, indent=2).decode()
