"""What stands in for the real world where the settings name none: simulator and embedded Valkey."""

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
from mdservice.runtime.runtime_dir import prepare_socket_folder
from mdservice.runtime.task_groups import background
from mdservice.settings import SIMULATOR, Settings

if TYPE_CHECKING:
    from mdservice.simulator import Simulator

__all__ = ["SIMULATED_SYMBOLS", "start_embedded_server", "start_simulator"]

SIMULATED_SYMBOLS = ("AAPL", "MSFT", "NVDA", "AMZN", "GOOGL", "META", "TSLA", "SPY")
"""What the simulator is asked for where no symbols are set, so that there is something to see."""
_TRADE_EVERY_S = 20.0


async def start_embedded_server(settings: Settings, stack: AsyncExitStack) -> Settings:
    """The settings with the URL of a Redis, which is started where they name none.

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
    feed = SIMULATOR if settings.simulated else settings.feed  # a Redis must not make it real
    return attrs.evolve(settings, redis_url=url, feed=feed)


async def start_simulator(settings: Settings, stack: AsyncExitStack, clock: Clock) -> Settings:
    """The settings with the addresses of a simulator, which is started where they ask for one.

    Where nothing is said of symbols and positions, there are some, so that there is something to
    see; where symbols are given, the positions are among these, and nothing else is followed.
    """
    if not settings.simulator_embedded:
        return settings
    run = partial(_run_simulator, clock, settings.symbols)
    simulator = await stack.enter_async_context(background(run))
    held = f"{simulator.rest_url}/v2/positions"
    unchosen = "positions" not in settings.sources
    return attrs.evolve(
        settings,
        feed=SIMULATOR,
        feed_url=simulator.url,
        symbols=settings.symbols or SIMULATED_SYMBOLS,
        positions=held if unchosen and not settings.symbols else settings.positions,
        gateway_positions=settings.gateway_positions or (held if unchosen else None),
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
