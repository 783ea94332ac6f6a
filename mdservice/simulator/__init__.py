"""An Alpaca that runs on this machine: its streams, REST, markets and faults.

::

    async with open_simulator(SimulatorConfig(seed=7, rate=1_000)) as simulator:
        ...  # connect a client to simulator.url

    async with open_simulator(SimulatorConfig(rate=0)) as simulator:
        await simulator.until(lambda s: any(c.subscriptions["quotes"] for c in s.connections))
        simulator.send_quotes([{"S": "AAPL", "bp": 187.12, "ap": 187.15}])
        simulator.drop("half-close")

Trades of stocks follow from the quotes, and bars from the trades. ``simulator.halt("AAPL")``,
``correct_trade`` and ``cancel_trade`` make rare events happen. To send records of your own, of
any kind::

    from mdservice.simulator.stock_records import SimTrade
    from mdservice.simulator.stocks import TRADES

    simulator.send_records(TRADES, [SimTrade("AAPL", 187.13, 100, id=1)])

The same port has the REST side, at ``simulator.rest_url``: the past and latest records, the
market's clock, and the account: its positions in stocks, crypto and options, market, limit and
multi-leg orders, activities and configurations.

::

    config = SimulatorConfig(positions=DEMO_POSITIONS, trade_every_s=20)
    async with open_simulator(config) as simulator:
        simulator.trade("AAPL", -20, "187.5")

Orders and trades are reported on the stream of trade updates, at
``simulator.stream_url("trading")``. Faults reach this stream only with ``feed="trading"``::

    simulator.inject(Lose(2), feed="trading")  # or Duplicate, Reorder, Slow, Mute
    simulator.refuse_next(402, feed="trading")  # the next login
    simulator.drop(feed="trading")
    simulator.reject_orders()
    simulator.end_day()  # orders expire; last_equity, lastday_price and average prices change

A day of the account. Its figures can be computed again from ``activities``, ``trades``,
``balances``, ``positions`` and ``history``::

    simulator.trade("AAPL", 10, "187.5")
    simulator.halt("AAPL")
    simulator.market_open = False  # the close: stocks and options stop, crypto goes on
    simulator.set_market_hours("2026-11-27T09:30:00-05:00", "2026-11-27T13:00:00-05:00")
    simulator.end_day()
    simulator.market_open = True

Crypto, options and news have their own streams and markets, which make the records of whatever
clients subscribe to: ``mdservice.simulator.crypto``, ``options`` and ``news``.

::

    async with open_simulator(SimulatorConfig(rate=0)) as simulator:
        ...  # connect a client to simulator.stream_url("crypto")
        simulator.send_records(crypto.TRADES, [SimPairTrade("BTC/USD", 64_250.5, 0.25, id=7)])

Without a port, as on trio's virtual clock, httpx reaches it through
:class:`mdservice.simulator.transport.SimulatorTransport`.
"""

from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.faults import (
    CancelTrade,
    CorrectTrade,
    CutRest,
    Drop,
    Duplicate,
    Fault,
    Freeze,
    Garble,
    GarbleRest,
    Halt,
    Lose,
    Mute,
    Planned,
    Refuse,
    RefuseRest,
    Reorder,
    RestFault,
    SendError,
    Slow,
    SlowRest,
    Spoil,
    seeded_faults,
)
from mdservice.simulator.market import UNIVERSE
from mdservice.simulator.memory import MemoryByteStream, memory_stream_pair
from mdservice.simulator.orders import Order
from mdservice.simulator.paper_account import Activity, Trade
from mdservice.simulator.positions import DEMO_POSITIONS, Holding
from mdservice.simulator.rest import RestRequest
from mdservice.simulator.server import ConnectionInfo, ReceivedMessage, Simulator, open_simulator
from mdservice.simulator.session import SILENCE
from mdservice.simulator.wire import SimQuote

__all__ = [
    "DEMO_POSITIONS",
    "SILENCE",
    "UNIVERSE",
    "Activity",
    "CancelTrade",
    "ConnectionInfo",
    "CorrectTrade",
    "CutRest",
    "Drop",
    "Duplicate",
    "Fault",
    "Freeze",
    "Garble",
    "GarbleRest",
    "Halt",
    "Holding",
    "Lose",
    "MemoryByteStream",
    "Mute",
    "Order",
    "Planned",
    "ReceivedMessage",
    "Refuse",
    "RefuseRest",
    "Reorder",
    "RestFault",
    "RestRequest",
    "SendError",
    "SimQuote",
    "Simulator",
    "SimulatorConfig",
    "Slow",
    "SlowRest",
    "Spoil",
    "Trade",
    "memory_stream_pair",
    "open_simulator",
    "seeded_faults",
]
