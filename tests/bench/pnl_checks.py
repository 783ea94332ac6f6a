"""How long the judgement of one order takes, with 20 limits, while prices change.

``check`` is the whole call of ``POST /api/v1/risk/check`` in process: FastAPI, the breaker's key in
Valkey, the limits. ``judgement`` is the limits alone. Between two calls some prices change, and so
the limits have to be judged again.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import anyio
import attrs
import msgspec
from fastapi import FastAPI

from mdservice.cli import GC_THRESHOLD
from mdservice.gateway.make import make_tracker
from mdservice.gateway.router import tracker_router
from mdservice.gateway.tracker import PnlTracker
from mdservice.model.payload import encode_quote
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.breaker import CLOSED
from mdservice.pnl.limits import Order
from mdservice.positions.parse import parse_positions
from mdservice.redis_io.commands import pack
from mdservice.settings import Settings
from tests.bench.pnl_account import Account, Writer
from tests.bench.pnl_times import Times
from tests.bench.tape import symbol_names

_OF_ALL: Final = (
    "* pnl < -1000000",
    "* pct < -99",
    "* price > 1000000",
    "* qty > 1000",
    "* value > 1000000000",
    "total pnl < -1000000000",
    "total pct < -99",
    "total value > 1000000000000",
    "total exposure > 1000000000000",
)
_MOST_SHARES: Final = 100
LIMITS: Final = (
    *_OF_ALL,
    *(f"{symbol} qty > {_MOST_SHARES}" for symbol in symbol_names(20 - len(_OF_ALL))),
)
"""Twenty, none of which is ever crossed: five are judged for each event's symbol, or six, and four
for the total."""
_CHANGING: Final = 10
"""How many prices change between two calls."""
_TAKEN_LIMIT_S = 20.0
_POLL_S = 0.002
_MOST_TOLD = 3
_OK = 200


@attrs.frozen
class Checks:
    """Some judgements of one kind.

    Attributes:
        way: ``check`` or ``judgement``.
        positions: Held symbols.
        limits: How many limits.
        figures: Of :meth:`tests.bench.pnl_times.Times.figures`.
        wrong: What was not as it must be.
    """

    way: str
    positions: int
    limits: int
    figures: dict[str, Any]
    wrong: list[str]


class _Polled:
    """Positions that are polled at an interval, as those of Alpaca are."""

    address = "the benchmark"

    def __init__(self, account: Account) -> None:
        self._positions = parse_positions(msgspec.json.encode(account.rows()))

    async def fetch(self) -> Sequence[Position]:
        return self._positions

    async def aclose(self) -> None:
        pass


async def checks(url: str, writer: Writer, counts: dict[int, int]) -> list[Checks]:
    """Judge as many orders as said, by the number of positions."""
    gc.set_threshold(*GC_THRESHOLD)
    found: list[Checks] = []
    for positions, count in counts.items():
        account = Account(0, positions)
        writer.write(account, 1, publish=False)
        tracker = make_tracker(_Polled(account), Settings(), redis_url=url, limits=LIMITS)
        app = FastAPI()
        app.include_router(tracker_router(tracker))
        async with app.router.lifespan_context(app):
            with anyio.fail_after(_TAKEN_LIMIT_S):
                while tracker.totals().priced < positions or tracker.risk.blind():
                    await anyio.sleep(_POLL_S)
            found += await _check(app, tracker, account, writer, count)
    return found


async def _check(
    app: FastAPI, tracker: PnlTracker, account: Account, writer: Writer, count: int
) -> list[Checks]:
    whole, alone = Times(), Times()
    wrong: list[str] = []
    # Every second one is too large: its symbol has a limit of its own.
    small, large = (Order(account.symbols[1], "buy", Decimal(qty)) for qty in (1, _MOST_SHARES))
    for number in range(count):
        await _change(tracker, account, writer, 2 + number)
        order = (small, large)[number % 2]
        body = msgspec.json.encode(
            {"symbol": order.symbol, "side": order.side, "qty": str(order.qty)}
        )
        started_s = whole.begin()
        status, answer = await _call(app, body)
        whole.end(started_s)
        await _change(tracker, account, writer, 2 + number)
        started_s = alone.begin()
        reasons = tracker.risk.objections(order, CLOSED)
        alone.end(started_s)
        allowed = order is small
        told = (status, answer.get("allowed"), len(answer.get("reasons", ())), len(reasons))
        if told != (_OK, allowed, 1 - allowed, 1 - allowed) and len(wrong) < _MOST_TOLD:
            wrong.append(f"{order}: {answer}, {reasons}")
    sizes = account.count, len(LIMITS)
    return [
        Checks("check", *sizes, whole.figures(), wrong),
        Checks("judgement", *sizes, alone.figures(), []),
    ]


async def _change(tracker: PnlTracker, account: Account, writer: Writer, turn: int) -> None:
    """Other prices of some symbols, which the tracker has when this returns."""
    version, now_ns = tracker.engine.version, time.time_ns()
    commands = []
    for place in range(_CHANGING):
        bid, ask = account.prices(place, turn)
        quote = Quote(account.symbols[place], bid, ask, 2, 3, now_ns, now_ns, turn)
        commands.append(pack(b"PUBLISH", b"price.updated", encode_quote(quote)))
    writer.send(commands)
    with anyio.fail_after(_TAKEN_LIMIT_S):
        while tracker.engine.version < version + _CHANGING:
            await anyio.sleep(0)


async def _call(app: FastAPI, body: bytes) -> tuple[int, dict[str, Any]]:
    """The answer of the application, without a server and a connection."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/v1/risk/check",
        "raw_path": b"/api/v1/risk/check",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"gateway"), (b"content-type", b"application/json")],
        "client": None,
        "server": None,
        "state": {},
    }
    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], msgspec.json.decode(content)
