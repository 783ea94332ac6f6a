"""The service's own codec reads what the simulator writes; each was written apart."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mdservice.feed.alpaca.codec import Codec
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    LULDS,
    STATUSES,
    TRADES,
    Kind,
)
from mdservice.simulator import stocks
from mdservice.simulator.bars import SimBar
from mdservice.simulator.kinds import SimKind
from mdservice.simulator.stock_records import (
    SimCancel,
    SimCorrection,
    SimImbalance,
    SimLimits,
    SimStatus,
    SimTrade,
    bar_row,
    trade_row,
)
from mdservice.simulator.wire import Encoding

NOW = 1_795_186_800_123_456_789
BAR = SimBar("BRK.B", 10.0, 11.25, 9.5, 10.5, 12_345, 67, 10.123456, NOW)
BAR_KINDS = [stocks.BARS, stocks.UPDATED_BARS, stocks.DAILY_BARS]
TRADE = SimTrade("BRK.B", 10.0, 7, 9_007_199_254_740_991, NOW, "V", ("@", "I"), "C")
CORRECTION = SimCorrection("AAPL", "V", 1, 10.0, 7, ("@",), 2, 10.5, 8, ("@", "I"), NOW, "C")
RECORDS: list[tuple[SimKind[Any], Kind[Any], Any]] = [
    (stocks.TRADES, TRADES, TRADE),
    *((kind, DAILY_BARS if kind is stocks.DAILY_BARS else BARS, BAR) for kind in BAR_KINDS),
    (stocks.CORRECTIONS, CORRECTIONS, CORRECTION),
    (stocks.CANCELS, CANCELS, SimCancel("AAPL", 3, "V", 10.5, 100, "E", NOW, "A")),
    (stocks.STATUSES, STATUSES, SimStatus("F", "H", "Halt", "T1", "News", NOW, "C")),
    (stocks.LULDS, LULDS, SimLimits("F", 11.0, 9.5, "B", NOW, "A")),
    (stocks.IMBALANCES, IMBALANCES, SimImbalance("F", 10.25, NOW, "A")),
]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize(("sim_kind", "kind", "record"), RECORDS)
def test_the_service_reads_each_kind(
    sim_kind: SimKind[Any], kind: Kind[Any], record: Any, encoding: Encoding
) -> None:
    codec = Codec(encoding)
    frame = sim_kind.encode([record, record], encoding, spoil=True)
    received = codec.decode([frame.data.decode() if frame.text else frame.data], NOW)
    assert received.errors == 1, "the broken message between them"
    read, same = received.records[kind]
    assert read == same
    for name in record.__struct_fields__:
        if name == "action":
            assert read.action == "error"
        elif name != "update":
            assert getattr(read, name) == getattr(record, name), name


def test_whole_prices_have_no_fraction_in_json() -> None:
    data = stocks.TRADES.encode([TRADE], "json", spoil=False).data
    assert data == (
        b'[{"T":"t","i":9007199254740991,"S":"BRK.B","x":"V","p":10,"s":7,'
        b'"t":"2026-11-20T15:00:00.123456789Z","c":["@","I"],"z":"C"}]'
    )


def test_rows_of_rest_have_no_type_and_symbol() -> None:
    assert msgspec.json.encode(trade_row(TRADE)) == (
        b'{"i":9007199254740991,"x":"V","p":10,"s":7,"t":"2026-11-20T15:00:00.123456789Z",'
        b'"c":["@","I"],"z":"C"}'
    )
    canceled = msgspec.structs.replace(TRADE, update="canceled")
    assert trade_row(canceled) == {**trade_row(TRADE), "u": "canceled"}
    assert bar_row(BAR) == {
        "o": 10,
        "h": 11.25,
        "l": 9.5,
        "c": 10.5,
        "v": 12_345,
        "n": 67,
        "vw": 10.123456,
        "t": "2026-11-20T15:00:00.123456789Z",
    }
