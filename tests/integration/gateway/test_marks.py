"""The price that P&L uses, from real keys and events: the last trade, and the side to exit at."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import anyio
import attrs

from mdservice.clock import SystemClock
from mdservice.model.kinds import CANCELS, CORRECTIONS, TRADES
from mdservice.model.position import Position
from mdservice.model.trade import Cancel, Correction, Trade
from mdservice.redis_io.names import Instance, encode_instance
from mdservice.testing import FakePositions
from tests.integration.conftest import patient

from .conftest import Gateway

AAPL = Position("AAPL", Decimal(10), Decimal("150.00"))
SHORT = Position("MSFT", Decimal(-4), Decimal("430.00"))


def trade(price: float, seq: int, *codes: str, age_s: float = 0.0, symbol: str = "AAPL") -> Trade:
    at_ns = SystemClock().utc_ns() - int(age_s * 1e9)
    return Trade(symbol, price, 100, "V", codes or ("@",), "C", seq, at_ns, at_ns, seq)


def write(gateway: Gateway, kind: Any, record: Any, *, key: bool = True) -> None:
    """As the service does: the key, then the event."""
    with gateway.valkey.client() as client:
        if key:
            client.set(f"{kind.key_prefix}{record.symbol}", kind.encode(record), px=300_000)
        client.publish(kind.event, kind.encode(record))


async def row(gateway: Gateway, **expected: object) -> dict[str, Any]:
    found = await gateway.until(lambda found: expected.items() <= found["positions"][0].items())
    return dict(found["positions"][0])


def test_a_position_is_priced_by_its_last_trade(run: Any) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 190, 191))
        await row(gateway, mark="mid", current_price=Decimal("190.5"), status="stale")
        first, second = trade(187, 1, age_s=2), trade(188, 2, age_s=1)
        write(gateway, TRADES, first)
        await row(gateway, mark="last", current_price=187, status="live", unrealized_pnl=370)
        write(gateway, TRADES, second)
        write(gateway, TRADES, trade(150, 3, "@", "I"))
        await row(gateway, mark="last", current_price=188)
        ids = "AAPL", "V", "C"
        right = Correction(*ids, 2, 188, 100, ("@",), 4, 188.5, 100, ("@",), second.ts_event_ns, 0)
        write(gateway, CORRECTIONS, right, key=False)
        await row(gateway, mark="last", current_price=Decimal("188.5"))
        cancel = Cancel(*ids, 4, 188.5, 100, "cancel", second.ts_event_ns, 0)
        write(gateway, CANCELS, cancel, key=False)
        await row(gateway, mark="last", current_price=187)

    run(body, FakePositions([AAPL]), mark="last", read_from="live")


def test_an_answer_from_keys_alone_has_the_last_trade(run: Any) -> None:
    async def body(gateway: Gateway) -> None:
        first = trade(187, 1, age_s=2)
        write(gateway, TRADES, first)
        await row(gateway, mark="last", current_price=187)
        write(gateway, TRADES, trade(188, 2, age_s=1))
        await row(gateway, mark="last", current_price=188)
        write(gateway, TRADES, attrs.evolve(first))
        await row(gateway, mark="last", current_price=187)

    run(body, FakePositions([AAPL]), mark="last", lifespan=False)


def test_it_says_so_if_the_service_does_not_follow_trades(run: Any) -> None:
    async def body(gateway: Gateway) -> None:
        service = Instance("a", 0, "host", 1, "iex", 0.0, 300.0, "2026-11-20T15:00:00Z")
        for channels, is_said in ((("quotes",), True), (("quotes", "trades"), False)):
            record = encode_instance(Instance(**{**_fields(service), "channels": channels}))
            with gateway.valkey.client() as client:
                client.set("mdservice:instance", record)
            with anyio.fail_after(patient(20)):
                found = await gateway.until(
                    lambda found, is_said=is_said: (
                        is_said
                        is any("MDSERVICE_CHANNELS" in text for text in found.get("warnings", ()))
                    )
                )
            assert found["positions"][0]["symbol"] == "AAPL"

    run(body, FakePositions([AAPL]), mark="last", lifespan=False)


def _fields(service: Instance) -> dict[str, Any]:
    return {name: getattr(service, name) for name in service.__struct_fields__}


def test_positions_are_priced_at_the_side_of_their_exit(run: Any) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("MSFT", 440, 441))
        found = await gateway.until(lambda found: found["priced"] == 1)
        (long, short) = found["positions"]
        assert (long["status"], long["mark"]) == ("unpriced", None)
        assert (short["mark"], short["current_price"], short["status"]) == ("ask", 441, "live")
        assert (short["unrealized_pnl"], short["market_value"]) == (-44, -1764)
        gateway.write(gateway.quote("AAPL", 187, 188))
        await row(gateway, mark="bid", current_price=187, status="live")
        gateway.write(gateway.quote("AAPL", 0, 188))
        await row(gateway, mark="bid", current_price=187, status="stale")

    run(body, FakePositions([AAPL, SHORT]), mark="exit")
