"""The commands that run until they are stopped: ``run``, ``gateway`` and ``simulate``."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mdservice.cli.options import (
    announce,
    config_option,
    run_async,
    settings_from,
    settings_options,
    use_json_lines,
)
from mdservice.observability.logging import configure_logging

if TYPE_CHECKING:
    from mdservice.simulator import Simulator, SimulatorConfig

__all__ = [
    "gateway",
    "run",
    "simulate",
]

_GATEWAY_EPILOG = """\b
Examples:
  mdservice gateway                                  positions of the running service
  mdservice gateway --gateway-positions alpaca       those of the Alpaca account
  mdservice gateway --gateway-positions file:positions.json --gateway-http 127.0.0.1:9000
  curl http://127.0.0.1:8002/api/v1/positions/pnl/realtime

\b
Prices come from Redis: that of --redis-url, or else that of the service at --socket.
"""

_RUN_EPILOG = """\b
Examples:
  mdservice run
  MDSERVICE_FEED=test ALPACA_API_KEY=… ALPACA_SECRET_KEY=… \\
    mdservice run --symbols FAKEPACA
  mdservice run --symbols AAPL,MSFT --redis-url redis://localhost:6379

\b
Secrets have no flags: set ALPACA_API_KEY, ALPACA_SECRET_KEY, MDSERVICE_API_TOKEN
and MDSERVICE_RELAY_KEYS, or put them into the file.
Ctrl-C, SIGTERM or SIGHUP writes pending events and ends; a second one ends at once.
"""

_SIMULATE_EPILOG = """\b
Example, in two terminals:
  mdservice simulate --port 8770 --rate 1000
  MDSERVICE_FEED=simulator MDSERVICE_FEED_URL=ws://127.0.0.1:8770/v2/iex \\
    mdservice run --symbols AAPL
"""
_TERMINAL_PERIOD_S = 1.0
_LOG_PERIOD_S = 10.0


@click.command(epilog=_RUN_EPILOG, short_help="Run the service.")
@settings_options()
@click.pass_context
def run(ctx: click.Context, /, config: Path | None, **flags: str | None) -> None:
    """Run the service: write the feed's quotes to Redis, and serve the HTTP API.

    With nothing set, the feed is a simulator and Redis an embedded server.
    """
    as_json = use_json_lines(ctx, config, flags)
    settings = settings_from(ctx, config, flags)
    settings.require_runnable()
    from mdservice.app.live_line import LiveLine
    from mdservice.app.run import serve

    live_line = LiveLine(redrawn=not as_json)
    configure_logging(settings.log_format, stream=live_line)
    run_async(partial(serve, settings, announce=announce, live_line=live_line))


@click.command(epilog=_GATEWAY_EPILOG, short_help="Serve positions and real-time P&L over HTTP.")
@settings_options()
@click.pass_context
def gateway(ctx: click.Context, /, config: Path | None, **flags: str | None) -> None:
    """Serve positions and their real-time P&L over HTTP: a small execution gateway.

    To serve the same from your own application, mount mdservice.gateway.pnl_router.
    """
    use_json_lines(ctx, config, flags)
    settings = settings_from(ctx, config, flags)
    from mdservice.app.run import run_gateway

    configure_logging(settings.log_format)
    run_async(partial(run_gateway, settings, announce=announce))


@click.command(epilog=_SIMULATE_EPILOG, short_help="Run only the simulator of Alpaca.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    help="The port; by default a free one.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="The same seed gives the same prices."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, max=1e7),
    default=200.0,
    show_default=True,
    help="Quotes per second, shared by the subscribed symbols.",
)
@click.option(
    "--trades",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="The interval of trades, which change the positions; by default no trades.",
)
@config_option
@click.pass_context
def simulate(
    ctx: click.Context,
    /,
    host: str,
    port: int,
    seed: int,
    rate: float,
    trades: float | None,
    config: Path | None,
) -> None:
    """Run only the simulator: Alpaca's protocol on a port of this machine.

    Any key and secret are accepted. The same port has Alpaca's REST: past and latest quotes, trades
    and bars, the clock, and a small account with its positions, orders and trade updates.
    """
    as_json = use_json_lines(ctx, config)  # the only setting of the simulator

    if as_json:
        configure_logging("json")
    from mdservice.simulator import DEMO_POSITIONS, SimulatorConfig

    chosen = SimulatorConfig(seed=seed, rate=rate, positions=DEMO_POSITIONS, trade_every_s=trades)
    run_async(partial(_simulate, chosen, host, port, as_json=as_json))


async def _simulate(config: SimulatorConfig, host: str, port: int, *, as_json: bool) -> None:
    import anyio

    from mdservice.runtime.stop_signals import stop_on_signal
    from mdservice.simulator import open_simulator

    async with anyio.create_task_group() as tasks:
        running = anyio.CancelScope()
        await tasks.start(stop_on_signal, running)
        async with open_simulator(config, host=host, port=port) as simulator:
            announce(f"simulating Alpaca at {simulator.url} (seed {config.seed})")
            announce(
                "to use it: MDSERVICE_FEED=simulator "
                f"MDSERVICE_FEED_URL={simulator.url} mdservice run --symbols AAPL"
            )
            announce(_about_positions(simulator))
            with running:
                await _show_progress(simulator, as_json)
        tasks.cancel_scope.cancel()
    if _is_terminal() and not as_json:
        _say("")
    announce("stopped")


def _say(line: str, *, end: bool = True) -> None:
    """Write a line. The simulator continues if its terminal or its reader is gone."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(line, nl=end)


def _about_positions(simulator: Simulator) -> str:
    every_s = simulator.config.trade_every_s
    trades = "no trades" if every_s is None else f"a trade every {every_s:g} s"
    return f"positions at {simulator.rest_url}/v2/positions: {len(simulator.positions)}, {trades}"


async def _show_progress(simulator: Simulator, as_json: bool = False) -> None:  # noqa: FBT001, FBT002 - start_soon takes no keywords
    import anyio

    terminal = _is_terminal() and not as_json
    period_s = _TERMINAL_PERIOD_S if terminal else _LOG_PERIOD_S
    before = simulator.quotes_made
    while True:
        await anyio.sleep(period_s)
        made = simulator.quotes_made
        rate = (made - before) / period_s
        before = made
        clients = len(simulator.connections)
        line = f"{clients} connected, {made:,} quotes made, {rate:,.0f} a second"
        if terminal:
            _say(f"\r{line:<70}", end=False)
        else:
            announce(line)


def _is_terminal() -> bool:
    return sys.stdout.isatty()
