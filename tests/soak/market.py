"""``python -m tests.soak.market PORT RATE``: the market of a soak, a process of its own.

The simulator with more trades than it has by default. Each feed of the service remembers its last
trades, up to a limit (:data:`~mdservice.router.policies.MOST_REMEMBERED`). With these rates all
feeds reach it in the warm part of a run of two hours, so memory that still grows is a fault.
"""

from __future__ import annotations

import sys
from functools import partial

import anyio

from mdservice.runtime.stop_signals import stop_on_signal
from mdservice.simulator import DEMO_POSITIONS, SimulatorConfig, open_simulator

_TRADES_PER_QUOTE = 0.5
_BOOKS_PER_QUOTE = 1.1
"""About three in ten changes of a crypto order book are trades."""
_FILL_EVERY_S = 5.0


async def _run(port: int, config: SimulatorConfig) -> None:
    async with anyio.create_task_group() as tasks:
        running = anyio.CancelScope()
        await tasks.start(stop_on_signal, running)
        async with open_simulator(config, host="127.0.0.1", port=port):
            with running:
                await anyio.sleep_forever()
        tasks.cancel_scope.cancel()


def main(port: int, rate: float) -> None:
    """Run until a signal ends it.

    Args:
        port: Of loopback.
        rate: Quotes of stocks a second.
    """
    config = SimulatorConfig(
        rate=rate,
        trades_per_quote=_TRADES_PER_QUOTE,
        crypto_rate=_BOOKS_PER_QUOTE * rate,
        positions=DEMO_POSITIONS,
        trade_every_s=_FILL_EVERY_S,
    )
    anyio.run(partial(_run, port, config))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
