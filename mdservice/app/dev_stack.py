"""The simulator and the embedded Valkey server, started if the settings name no real ones."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.positions.sources import ALPACA
from mdservice.runtime.runtime_dir import prepare_socket_folder
from mdservice.runtime.task_groups import background
from mdservice.settings import SIMULATOR, Settings

if TYPE_CHECKING:
    from mdservice.simulator import Simulator

__all__ = ["SIMULATED_SYMBOLS", "start_embedded_server", "start_simulator"]

SIMULATED_SYMBOLS = (
    *("AAPL", "MSFT", "NVDA", "AMZN", "GOOGL", "META", "TSLA", "SPY"),
    *("BTC/USD", "ETH/USD", "AAPL281215C00200000"),
)
"""The symbols of the simulator if none are set, so that a first run shows some of each."""
SIMULATED_CHANNELS = ("quotes", "trades", "bars", "dailyBars", "statuses")
"""Their channels, likewise."""
_TRADE_EVERY_S = 20.0
_KEY = "key-of-the-simulated-account"
"""The simulator takes any."""


async def start_embedded_server(settings: Settings, stack: AsyncExitStack) -> Settings:
    """Start an embedded server if the settings name no Redis; return the settings with its URL.

    Raises:
        EmbeddedServerError
    """
    if settings.redis_url is not None:
        return settings
    from mdservice.redis_io.embedded import keep_embedded_server

    prepare_socket_folder(settings.socket)
    name = f"{settings.socket.stem}.{secrets.token_hex(3)}.valkey.sock"
    keep = partial(keep_embedded_server, settings.socket.with_name(name))
    url = await stack.enter_async_context(background(keep))
    # Setting a Redis must not select a real feed.
    feed = SIMULATOR if settings.simulated else settings.feed
    return attrs.evolve(settings, redis_url=url, feed=feed)


async def start_simulator(settings: Settings, stack: AsyncExitStack, clock: Clock) -> Settings:
    """Start a simulator if the settings ask for one; return the settings with its addresses.

    Without symbols and positions in the settings, the simulator has some of both, with several
    channels and news. With symbols in the settings, the positions are only in these. A trade every
    20 s changes them, and shows as an event of the trading stream.
    """
    if not settings.simulator_embedded:
        return settings
    run = partial(_run_simulator, clock, settings.symbols)
    simulator = await stack.enter_async_context(background(run))
    unchosen = "positions" not in settings.sources
    first_run = not settings.symbols and "channels" not in settings.sources
    return attrs.evolve(
        settings,
        feed=SIMULATOR,
        feed_url=simulator.url,
        symbols=settings.symbols or SIMULATED_SYMBOLS,
        channels=SIMULATED_CHANNELS if first_run else settings.channels,
        news=(EVERY_SYMBOL,) if first_run and "news" not in settings.sources else settings.news,
        positions=ALPACA if unchosen and not settings.symbols else settings.positions,
        gateway_positions=settings.gateway_positions or (ALPACA if unchosen else None),
        api_key=settings.api_key or _KEY,
        secret_key=settings.secret_key or _KEY,
    )


async def _run_simulator(
    clock: Clock, symbols: Sequence[str], *, task_status: TaskStatus[Simulator]
) -> None:
    from mdservice.simulator import DEMO_POSITIONS, SimulatorConfig, open_simulator

    every = not symbols or EVERY_SYMBOL in symbols
    positions = {s: held for s, held in DEMO_POSITIONS.items() if every or s in symbols}
    config = SimulatorConfig(positions=positions, trade_every_s=_TRADE_EVERY_S)
    async with open_simulator(config, clock=clock) as simulator:
        task_status.started(simulator)
        await anyio.sleep_forever()
