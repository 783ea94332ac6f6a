"""An Alpaca that runs on this machine: its stock stream's protocol, prices and faults.

::

    async with open_simulator(SimulatorConfig(seed=7, rate=1_000)) as simulator:
        ...  # connect a client to simulator.url

    async with open_simulator(SimulatorConfig(rate=0)) as simulator:
        await simulator.until(lambda s: any(c.subscriptions["quotes"] for c in s.connections))
        simulator.send_quotes([{"S": "AAPL", "bp": 187.12, "ap": 187.15}])
        simulator.drop("half-close")
"""

from mdservice.simulator.account import SILENCE
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.control import ConnectionInfo
from mdservice.simulator.faults import (
    Drop,
    Duplicate,
    Fault,
    Freeze,
    Garble,
    Mute,
    Planned,
    Refuse,
    Reorder,
    SendError,
    Slow,
    Spoil,
    seeded_faults,
)
from mdservice.simulator.memory import MemoryByteStream, memory_stream_pair
from mdservice.simulator.server import ReceivedMessage, Simulator, open_simulator
from mdservice.simulator.universe import UNIVERSE
from mdservice.simulator.wire import SimQuote

__all__ = [
    "SILENCE",
    "UNIVERSE",
    "ConnectionInfo",
    "Drop",
    "Duplicate",
    "Fault",
    "Freeze",
    "Garble",
    "MemoryByteStream",
    "Mute",
    "Planned",
    "ReceivedMessage",
    "Refuse",
    "Reorder",
    "SendError",
    "SimQuote",
    "Simulator",
    "SimulatorConfig",
    "Slow",
    "Spoil",
    "memory_stream_pair",
    "open_simulator",
    "seeded_faults",
]
