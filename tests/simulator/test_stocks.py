"""The channels of stocks over a connection, and REST's answers about the same records."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import anyio
import httpx
import msgpack
import msgspec
import pytest
from trio.testing import MockClock

from mdservice.model.timestamps import format_ns, parse_rfc3339
from mdservice.simulator import (
    CancelTrade,
    CorrectTrade,
    Halt,
    Mute,
    Planned,
    Simulator,
    SimulatorConfig,
    open_simulator,
)
from mdservice.simulator.bars import SimBar
from mdservice.simulator.feeds import STOCKS
from mdservice.simulator.stock_records import SimTrade
from mdservice.simulator.stocks import BARS, DAILY_BARS, QUOTES, TRADES, UPDATED_BARS
from mdservice.simulator.transport import SimulatorTransport
from mdservice.testing.fake_feed import VirtualClock

MORE_THAN_QUOTES = [channel for channel in STOCKS.asked_for if channel != "quotes"]
LIVELY: dict[str, Any] = {
    "rate": 40,
    "shape": "flat",
    "trades_per_quote": 0.5,
    "late_trade_ratio": 0.1,
    "correction_ratio": 0.05,
    "cancel_ratio": 0.05,
    "imbalance_ratio": 0.05,
    "halt_every_s": 60,
}
T0 = parse_rfc3339("2026-11-20T15:00:00Z")


def subscribe(*symbols: str, channels: list[str] = MORE_THAN_QUOTES) -> dict[str, Any]:
    return {"action": "subscribe", **{channel: list(symbols) for channel in channels}}


def unpacked(frame: bytes) -> list[dict[str, Any]]:
    """The messages of a frame, the times, which must be timestamps, as in JSON."""
    messages: list[dict[str, Any]] = msgpack.unpackb(frame)
    for message in messages:
        message["t"] = format_ns(message["t"].to_unix_nano())[:-1].rstrip("0").rstrip(".") + "Z"
    return messages


async def read_for(client: Any, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """What comes in so many seconds, by type."""
    came: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with anyio.move_on_after(seconds):
        while True:
            frame = await client.frame()
            messages = msgspec.json.decode(frame) if isinstance(frame, str) else unpacked(frame)
            for message in messages:
                came[message["T"]].append(message)
    return came


async def get(simulator: Simulator, path: str, **params: Any) -> Any:
    transport = SimulatorTransport(simulator)
    async with httpx.AsyncClient(transport=transport, base_url=simulator.rest_url) as client:
        answer = await client.get(
            path, params={"feed": "iex", "symbols": "AAPL", "limit": 10_000, **params}
        )
        return answer.json()


@pytest.mark.thorough
async def test_every_channel_comes_and_rest_has_the_same(
    dial: Any, autojump_clock: MockClock
) -> None:
    config = SimulatorConfig(**LIVELY)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        client = await dial(simulator)
        await client.login()
        await client.send(**subscribe("AAPL"))
        assert (await client.receive())[0]["T"] == "subscription"
        came = await read_for(client, 315)
        assert {*came} == {*"tbudscxli"}
        assert len(came["b"]) == 5
        assert {message["S"] for messages in came.values() for message in messages} == {"AAPL"}

        start = format_ns(T0)
        trades = (await get(simulator, "/v2/stocks/trades", start=start))["trades"]["AAPL"]
        by_id = {(trade["x"], trade["i"]): trade for trade in trades}
        assert len(by_id) == len(trades)
        wrong = {(one["x"], one["oi"]) for one in came["c"]}
        canceled = {(one["x"], one["i"]) for one in came["x"]}
        for message in came["t"]:
            key = message["x"], message["i"]
            row = dict(by_id.pop(key))
            update = row.pop("u", None)
            assert message == {"T": "t", "S": "AAPL", **row}
            assert update == (
                "incorrect" if key in wrong else "canceled" if key in canceled else None
            )
        assert {row["u"] for row in by_id.values()} == {"corrected"}
        assert {key: row["p"] for key, row in by_id.items()} == {
            (one["x"], one["ci"]): one["cp"] for one in came["c"]
        }

        final = {message["t"]: message for message in (*came["b"], *came["u"])}
        bars = await get(simulator, "/v2/stocks/bars", start=start, timeframe="1Min")
        assert bars["bars"]["AAPL"] == [
            {name: value for name, value in final[t].items() if name not in "TS"}
            for t in sorted(final)
        ]
        (day,) = (
            await get(simulator, "/v2/stocks/bars", start="2026-11-20T00:00:00Z", timeframe="1Day")
        )["bars"]["AAPL"]
        assert day == {name: v for name, v in came["d"][-1].items() if name not in "TS"}
        newest = await get(simulator, "/v2/stocks/snapshots")
        assert newest["AAPL"]["dailyBar"] == day
        assert newest["AAPL"]["minuteBar"] == bars["bars"]["AAPL"][-1]
        assert newest["AAPL"]["prevDailyBar"] is None
        latest = await get(simulator, "/v2/stocks/trades/latest")
        assert latest["trades"]["AAPL"] == newest["AAPL"]["latestTrade"]
        assert (
            latest["trades"]["AAPL"] == [t for t in trades if t.get("u") in {None, "corrected"}][-1]
        )


@pytest.mark.thorough
async def test_a_minute_brings_every_kind_of_every_symbol(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with open_simulator(SimulatorConfig(), port=None, clock=VirtualClock()) as simulator:
        client = await dial(simulator)
        await client.login()
        await client.send(**subscribe("AAPL", "SPY", "JPM"))
        await client.receive()
        came = await read_for(client, 61)
        for tag in "tbdsli":
            assert {message["S"] for message in came[tag]} == {"AAPL", "SPY", "JPM"}, tag


@pytest.mark.thorough
async def test_json_and_msgpack_say_the_same(dial: Any, autojump_clock: MockClock) -> None:
    config = SimulatorConfig(**LIVELY, connection_limit=None)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        clients = [await dial(simulator), await dial(simulator, msgpack=True)]
        came: list[dict[str, list[dict[str, Any]]]] = [{}, {}]
        for client in clients:
            await client.login()
            await client.send(**subscribe("AAPL", "F"))
            await client.receive()

        async def read(place: int) -> None:
            came[place] = await read_for(clients[place], 100.1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, 0)
            tasks.start_soon(read, 1)
        as_json, as_msgpack = came
        assert as_json == as_msgpack
        assert {*as_json} == {*"tbudscxli"}


async def test_quotes_are_the_same_with_and_without_trades(
    dial: Any, autojump_clock: MockClock
) -> None:
    async def quotes(channels: list[str]) -> list[Any]:
        config = SimulatorConfig(**{**LIVELY, "rate": 200})
        async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
            client = await dial(simulator)
            await client.login()
            await client.send(**subscribe("AAPL", "MSFT", channels=channels))
            await client.receive()
            await anyio.sleep(10)
            assert (TRADES in {k for k, made in simulator.made.items() if made}) == (
                channels != ["quotes"]
            )
            return [msgspec.structs.replace(q, ts_event_ns=0) for q in simulator.history][:1_900]

    alone = await quotes(["quotes"])
    assert len(alone) == 1_900
    assert await quotes(["quotes", "trades"]) == alone
    assert await quotes(["bars"]) == alone, "and they are made for bars, though not sent"


async def test_the_script_halts_corrects_and_cancels(dial: Any, autojump_clock: MockClock) -> None:
    faults = (
        Planned(Halt("AAPL", 3), after_s=5),
        Planned(CorrectTrade("AAPL"), after_s=10),
        Planned(CancelTrade("AAPL"), after_s=12),
        Planned(CancelTrade("NONE"), after_s=13),
        Planned(Mute(), after_s=1, feed="crypto"),
    )
    config = SimulatorConfig(
        **{**LIVELY, "correction_ratio": 0, "cancel_ratio": 0, "halt_every_s": None}, faults=faults
    )
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        client = await dial(simulator)
        await client.login()
        await client.send(**subscribe("AAPL"))
        await client.receive()
        came = await read_for(client, 20)
        assert [(one["sc"], one["t"][:19]) for one in came["s"]] == [
            ("T", "2026-11-20T15:00:00"),
            ("H", "2026-11-20T15:00:05"),
            ("T", "2026-11-20T15:00:08"),
        ]
        halt_ns, resumption_ns = (parse_rfc3339(one["t"]) for one in came["s"][1:])

        def in_halt(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [m for m in messages if halt_ns <= parse_rfc3339(m["t"]) <= resumption_ns]

        assert not in_halt(came["t"])
        assert in_halt(came["i"])
        assert [one["i"] for one in came["l"]][-2:] == ["D", "E"]
        (correction,), (cancel,) = came["c"], came["x"]
        trades = {one["i"]: one for one in came["t"]}
        assert correction["op"] == trades[correction["oi"]]["p"] != correction["cp"]
        assert cancel["i"] in trades


async def test_records_sent_by_hand_change_rest_too(dial: Any, autojump_clock: MockClock) -> None:
    async with open_simulator(
        SimulatorConfig(rate=0), port=None, clock=VirtualClock()
    ) as simulator:
        client = await dial(simulator)
        await client.login()
        await client.send(**subscribe("AAPL"))
        await client.receive()
        simulator.send_quotes([{"S": "AAPL", "bp": 10, "ap": 10.02, "t": T0}])
        trades = [SimTrade("AAPL", 10 + n / 100, 100, n + 1, T0 + n) for n in range(3)]
        assert simulator.send_records(TRADES, trades) == 1
        simulator.cancel_trade("AAPL")
        simulator.correct_trade("AAPL")
        simulator.halt("AAPL")
        await anyio.sleep(100)
        simulator.resume_trading("AAPL")
        came = await read_for(client, 1)
        assert [one["i"] for one in came["t"]] == [1, 2, 3]
        assert [one["i"] for one in came["x"]] == [3]
        assert [(one["oi"], one["op"], one["cp"]) for one in came["c"]] == [(2, 10.01, 10.02)]
        assert [one["sc"] for one in came["s"]] == ["H", "T"]
        assert not came["b"], "nothing is made by itself"
        rows = (await get(simulator, "/v2/stocks/trades", start="2026-11-20"))["trades"]["AAPL"]
        assert [(row["p"], row.get("u")) for row in rows] == [
            (10, None),
            (10.01, "incorrect"),
            (10.02, "corrected"),
            (10.02, "canceled"),
        ]
        latest = (await get(simulator, "/v2/stocks/trades/latest"))["trades"]["AAPL"]
        assert (latest["p"], latest["t"], latest["u"]) == (10.02, rows[1]["t"], "corrected")

        bar = SimBar("AAPL", 10, 11, 9, 10.5, 300, 3, 10.25, T0)
        simulator.send_records(BARS, [bar])
        simulator.send_records(UPDATED_BARS, [msgspec.structs.replace(bar, volume=400)])
        simulator.send_records(DAILY_BARS, [bar])
        simulator.send_records(DAILY_BARS, [msgspec.structs.replace(bar, volume=500)])
        for timeframe, volume in (("1Min", 400), ("1Day", 500)):
            bars = await get(simulator, "/v2/stocks/bars", start="2026-11-20", timeframe=timeframe)
            assert [row["v"] for row in bars["bars"]["AAPL"]] == [volume]
        latest = (await get(simulator, "/v2/stocks/bars/latest"))["bars"]["AAPL"]
        assert latest["v"] == 400


@pytest.mark.parametrize("timeframe", ["5Min", ""])
async def test_other_timeframes_are_refused(timeframe: str, autojump_clock: MockClock) -> None:
    async with open_simulator(SimulatorConfig(rate=0), port=None) as simulator:
        answer = await get(simulator, "/v2/stocks/bars", timeframe=timeframe)
        assert answer["message"] == f"invalid timeframe: {timeframe}"


async def test_rest_faults_and_lag_concern_trades_too(dial: Any, autojump_clock: MockClock) -> None:
    clock = VirtualClock()
    config = SimulatorConfig(rate=0, rest_lag_s=5, rest_page_size=2)
    async with open_simulator(config, port=None, clock=clock) as simulator:
        now_ns = clock.utc_ns()
        trades = [SimTrade("AAPL", 10, 100, n, now_ns + n) for n in range(3)]
        simulator.send_records(TRADES, trades)
        path = "/v2/stocks/trades"
        assert (await get(simulator, path, start="2026-11-20"))["trades"] == {}
        assert (await get(simulator, f"{path}/latest"))["trades"]["AAPL"]["i"] == 2
        await anyio.sleep(6)
        first = await get(simulator, path, start="2026-11-20")
        token = first["next_page_token"]
        second = await get(simulator, path, start="2026-11-20", page_token=token)
        ids = [row["i"] for page in (first, second) for row in page["trades"]["AAPL"]]
        assert ids == [0, 1, 2]
        assert second["next_page_token"] is None
        newest = await get(simulator, path, start="2026-11-20", sort="desc", limit=1)
        assert [row["i"] for row in newest["trades"]["AAPL"]] == [2]
        simulator.refuse_rest(429, 42910000, "too many requests.", path=path)
        assert (await get(simulator, path))["message"] == "too many requests."
        assert [request.status for request in simulator.rest_requests][-1] == 429


async def test_each_stream_has_its_own_connection_and_faults(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with open_simulator(SimulatorConfig(rate=0), port=None) as simulator:
        clients = {
            feed: await dial(
                simulator,
                msgpack=True,
                path=simulator.stream_url(feed).removeprefix("ws://simulator:80"),
            )
            for feed in ("stocks", "crypto", "options", "news")
        }
        for client in clients.values():
            await client.login()
        assert [c.feed for c in simulator.connections] == ["stocks", "crypto", "options", "news"]
        simulator.mute(5, feed="stocks")
        simulator.drop("close", feed="crypto")
        assert await clients["crypto"].closed() == 1001
        await simulator.until(lambda s: len(s.connections) == 3)
        assert [c.feed for c in simulator.connections] == ["stocks", "options", "news"]
        simulator.refuse_next(406, feed="crypto", when="connect")
        simulator.refuse_upgrade(503, feed="crypto")
        stock = await dial(simulator, path="/v2/sip")
        assert (await stock.receive())[0]["msg"] == "connected"
        assert (await dial(simulator, path="/v1beta3/crypto/us")).status == 503
        crypto = await dial(simulator, path="/v1beta3/crypto/us")
        assert (await crypto.receive())[0]["code"] == 406
        await clients["stocks"].send(action="subscribe", quotes=["AAPL"])
        await clients["stocks"].receive()
        assert not simulator.send_records(QUOTES, [])
        assert simulator.send_quotes([{"S": "AAPL", "bp": 1, "ap": 2}]) == 0, "muted"
