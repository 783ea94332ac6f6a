"""Runs a simulator: its port and its tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import Listener, SocketAttribute, SocketStream, TaskGroup

from mdservice.clock import Clock, SystemClock
from mdservice.errors import ConfigurationError
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.server import Simulator

__all__ = ["open_simulator"]


@asynccontextmanager
async def open_simulator(
    config: SimulatorConfig | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = 0,
    clock: Clock | None = None,
) -> AsyncGenerator[Simulator, None]:
    """Run a simulator for the length of the block, on trio or asyncio.

    Args:
        config: What it does; None for the defaults.
        host: Where it listens.
        port: 0 for a free one (see :attr:`Simulator.port`); None for no socket at all, only
            :meth:`Simulator.connect`, as trio's virtual clock needs it.
        clock: Where quotes get their time; None for the machine's.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    listener = None if port is None else await _listen(host, port)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        simulator = Simulator(config or SimulatorConfig(), clock or SystemClock(), tasks)
        if listener is not None:
            simulator.host = host
            simulator.port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no Django
            tasks.start_soon(_accept, listener, simulator, tasks)
        tasks.start_soon(simulator.run_market)
        tasks.start_soon(simulator.run_script)
        tasks.start_soon(simulator.run_trader)
        try:
            yield simulator
        except Exception as exc:  # noqa: BLE001 - raised again below, out of the task group
            failure = exc
        else:
            await simulator.say_farewell()
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _listen(host: str, port: int) -> Listener[SocketStream]:
    try:
        return await anyio.create_tcp_listener(local_host=host, local_port=port)
    except (OSError, OverflowError) as exc:
        raise ConfigurationError(
            f"the simulator cannot listen on {host}:{port} ({exc}): choose another port, "
            "or 0 for a free one"
        ) from exc


async def _accept(listener: Listener[SocketStream], simulator: Simulator, tasks: TaskGroup) -> None:
    async with listener:
        await listener.serve(simulator.serve, tasks)
