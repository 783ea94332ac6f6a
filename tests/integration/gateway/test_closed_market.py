"""P&L while the market is closed: the prices of positions come from REST."""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.app.service import open_service
from mdservice.model.position import Position
from mdservice.model.timestamps import format_ns
from mdservice.settings import Settings
from mdservice.simulator import Refuse, SimQuote, SimulatorConfig, open_simulator
from mdservice.testing import FakePositions
from tests.integration.conftest import patient
from tests.integration.gateway.conftest import LIMIT_S, Gateway, open_gateway

_CLOSE_NS = time.time_ns() - 16 * 3_600 * 1_000_000_000
_MANY = 1_000
_HTTP_UNAVAILABLE = 503


def _held(symbol: str) -> Position:
    return Position(symbol, Decimal(10), Decimal("150.00"))


def _closing(symbol: str) -> SimQuote:
    return SimQuote(symbol, 187.12, 187.15, 1, 1, _CLOSE_NS)


async def _priced_at_night(
    valkey: Any,
    folder: Path,
    at_start: Sequence[str],
    later: Sequence[str],
    feed_is_down: bool,
) -> list[dict[str, Any]]:
    """The rows once all positions are priced; a service of its own follows them."""
    symbols = [*at_start, *later]
    at_first = [_held(symbol) for symbol in at_start]
    followed, shown = FakePositions(at_first), FakePositions(at_first)
    async with open_simulator(SimulatorConfig(rate=0)) as simulator:
        simulator.market_open = False
        simulator.send_quotes([_closing(symbol) for symbol in symbols])
        if feed_is_down:
            simulator.inject(Refuse(_HTTP_UNAVAILABLE, "upgrade", _MANY))
        given = Settings(
            feed="sip",
            feed_url=simulator.url,
            rest_url=simulator.rest_url,
            trading_url=simulator.rest_url,
            api_key="key",
            secret_key="secret",
            redis_url=valkey.url,
            positions_interval=0.1,
            socket=folder / "s",
        )
        async with (
            open_service(given, positions=followed),
            open_gateway(valkey, shown) as gateway,
        ):
            await _until_priced(gateway, len(at_start))
            followed.positions = shown.positions = tuple(_held(symbol) for symbol in symbols)
            found = await _until_priced(gateway, len(symbols))
            rows = found["positions"]
            assert found["unpriced"] == 0
            assert {row["symbol"] for row in rows} == set(symbols)
            return list(rows)


async def _until_priced(gateway: Gateway, count: int) -> dict[str, Any]:
    with anyio.fail_after(patient(LIMIT_S / 3)):
        return await gateway.until(
            lambda found: (
                found["priced"] == count
                and found["market"] is not None
                and {row["status"] for row in found["positions"]} <= {"closed"}
            )
        )


CASES = [
    pytest.param(("AAPL", "BRK.B"), (), False, id="at the start"),
    pytest.param((), ("AAPL", "TSLA"), False, id="opened while it runs"),
    pytest.param(("AAPL",), ("TSLA",), True, id="the feed is down too"),
]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("at_start", "later", "feed_is_down"), CASES)
def test_positions_are_priced_at_night(
    valkey: Any,
    tmp_path: Path,
    at_start: Sequence[str],
    later: Sequence[str],
    feed_is_down: bool,
    backend: str,
) -> None:
    async def main() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            rows = await _priced_at_night(valkey, tmp_path, at_start, later, feed_is_down)
        for row in rows:
            assert (row["current_price"], row["unrealized_pnl"]) == (
                Decimal("187.135"),
                Decimal("371.35"),
            )
            assert row["status"] == "closed"
            assert row["last_updated"] == format_ns(_CLOSE_NS)

    anyio.run(main, backend=backend)


def test_positions_are_priced_after_a_restart_at_night(valkey: Any, tmp_path: Path) -> None:
    async def main() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            first = await _priced_at_night(valkey, tmp_path, ("AAPL",), (), False)
            with valkey.client() as client:
                client.delete("price:AAPL")  # the service was away for longer than its life
            assert await _priced_at_night(valkey, tmp_path, ("AAPL",), (), False) == first

    anyio.run(main, backend="trio")
