"""The REST side over streams in memory, by httpx, on trio's virtual clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx
import pytest
import trio
from trio.testing import MockClock

from mdservice.model.timestamps import format_ns, parse_rfc3339
from mdservice.simulator import (
    CutRest,
    Planned,
    RefuseRest,
    SimQuote,
    Simulator,
    SimulatorConfig,
    open_simulator,
)
from mdservice.simulator.rest import RateLimit, encode_clock
from mdservice.simulator.transport import SimulatorTransport

NOW_NS = 1_795_189_904_000_000_000
QUOTES, LATEST, CLOCK = "/v2/stocks/quotes", "/v2/stocks/quotes/latest", "/v2/clock"


class TrioClock:
    """UTC that follows the event loop's time."""

    def monotonic(self) -> float:
        return anyio.current_time()

    def utc_ns(self) -> int:
        return NOW_NS + round(anyio.current_time() * 1_000_000_000)


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[tuple[Simulator, httpx.AsyncClient]]:
    """A simulator and a client, for at most a virtual quarter of an hour."""
    config = SimulatorConfig(**{"rate": 0, **settings})
    with anyio.fail_after(900):
        async with (
            open_simulator(config, port=None, clock=TrioClock()) as simulator,
            httpx.AsyncClient(
                transport=SimulatorTransport(simulator), base_url=simulator.rest_url
            ) as client,
        ):
            yield simulator, client


async def bids(client: httpx.AsyncClient, **params: Any) -> dict[str, list[float]]:
    """The bids of the first page, by symbol."""
    answer = await client.get(QUOTES, params={"feed": "iex", **params})
    assert answer.status_code == 200, answer.text
    return {s: [q["bp"] for q in quotes] for s, quotes in answer.json()["quotes"].items()}


async def test_history_has_every_quote_also_those_that_were_not_sent(
    autojump_clock: MockClock,
) -> None:
    async with opened() as (simulator, client):
        simulator.send_quotes([SimQuote("B", 1, 2), SimQuote("A", 3, 4), SimQuote("B", 5, 6)])
        assert not simulator.sent
        answer = await client.get(QUOTES, params={"symbols": "B,A,C", "feed": "iex"})
        assert answer.headers["Content-Type"] == "application/json"
        assert parsedate_to_datetime(answer.headers["Date"]).timestamp() == NOW_NS / 1e9
        page = answer.json()
        assert page["next_page_token"] is None
        assert list(page["quotes"]) == ["A", "B"]
        assert page["quotes"]["B"] == [
            {
                "t": t,
                "ax": "V",
                "ap": ap,
                "as": 100,
                "bx": "V",
                "bp": bp,
                "bs": 100,
                "c": ["R"],
                "z": "C",
            }
            for t, bp, ap in [
                ("2026-11-20T15:51:44Z", 1, 2),
                ("2026-11-20T15:51:44.000000002Z", 5, 6),
            ]
        ]


async def test_start_and_end_are_included(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.send_quotes([SimQuote("A", n, 9, ts_event_ns=NOW_NS + n) for n in range(1, 6)])
        start, end = format_ns(NOW_NS + 2), format_ns(NOW_NS + 4)
        assert await bids(client, symbols="A", start=start, end=end) == {"A": [2, 3, 4]}
        assert await bids(client, symbols="A", start=start, end=end, sort="desc") == {
            "A": [4, 3, 2]
        }


async def test_pages_are_followed_to_the_end(autojump_clock: MockClock) -> None:
    async with opened(rest_page_size=7) as (simulator, client):
        simulator.send_quotes([SimQuote("AB"[n % 2], n, 99) for n in range(20)])
        seen, token = [], None
        while token != "":
            params = {"symbols": "A,B", "feed": "iex", "limit": "10000", "page_token": token or ""}
            page = (await client.get(QUOTES, params=params)).json()
            seen += [(s, q["bp"]) for s, quotes in page["quotes"].items() for q in quotes]
            token = page["next_page_token"] or ""
        assert seen == [(s, n) for s in "AB" for n in range(20) if "AB"[n % 2] == s]
        assert [request.status for request in simulator.rest_requests] == [200] * 3


async def test_a_full_page_comes_whole(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.send_quotes([SimQuote("A", n, 99_999) for n in range(10_001)])
        assert await bids(client, symbols="A", limit=10_000) == {"A": list(range(10_000))}
        assert trio.current_time() == 0


async def test_history_is_as_bounded_as_the_record(autojump_clock: MockClock) -> None:
    async with opened(history_size=2) as (simulator, client):
        simulator.send_quotes([SimQuote("A", n, 9) for n in range(5)])
        assert await bids(client, symbols="A") == {"A": [3, 4]}


async def test_history_lags_and_latest_does_not(autojump_clock: MockClock) -> None:
    async with opened(rest_lag_s=2) as (simulator, client):
        simulator.send_quotes([SimQuote("A", 1, 2)])
        await trio.sleep(1.5)
        simulator.send_quotes([SimQuote("A", 3, 4)])
        assert await bids(client, symbols="A") == {}
        await trio.sleep(1)
        assert await bids(client, symbols="A") == {"A": [1]}
        await trio.sleep(1)
        assert await bids(client, symbols="A") == {"A": [1, 3]}
        simulator.send_quotes([SimQuote("A", 5, 6)])
        latest = (await client.get(LATEST, params={"symbols": "A,B", "feed": "iex"})).json()
        assert {s: q["bp"] for s, q in latest["quotes"].items()} == {"A": 5}


async def test_the_markets_own_quotes_are_in_the_history(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(rate=200, shape="flat") as (simulator, client):
        websocket = await dial(simulator)
        await websocket.login("AAPL", "MSFT")
        await simulator.until(lambda s: s.quotes_made >= 300)
        page = await bids(client, symbols="AAPL,MSFT", limit=10_000)
        made = list(simulator.history)
        assert page == {s: [q.bid for q in made if q.symbol == s] for s in ("AAPL", "MSFT")}


async def test_the_clock_is_set_by_the_test(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        assert (await client.get(CLOCK)).json() == {
            "timestamp": "2026-11-20T10:51:44.000000000-05:00",
            "is_open": True,
            "next_open": "2026-11-23T09:30:00-05:00",
            "next_close": "2026-11-20T16:00:00-05:00",
        }
        simulator.market_open = False
        assert (await client.get(CLOCK)).json()["is_open"] is False
        simulator.set_market_hours("2026-11-27T09:30:00-05:00", "2026-11-27T13:00:00-05:00")
        clock = (await client.get(CLOCK)).json()
        assert clock["next_open"] == "2026-11-27T09:30:00-05:00"
        assert clock["next_close"] == "2026-11-27T13:00:00-05:00"


@pytest.mark.parametrize("path", [f"{QUOTES}?symbols=A", f"{LATEST}?symbols=A", CLOCK])
async def test_asks_for_the_keys_where_it_has_any(path: str, autojump_clock: MockClock) -> None:
    async with opened(key="key", secret="right") as (_, client):
        right = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "right"}
        missing = await client.get(path, headers={"APCA-API-KEY-ID": "key"})
        assert (missing.status_code, missing.json()) == (401, {"message": "unauthorized."})
        wrong = await client.get(path, headers={**right, "APCA-API-SECRET-KEY": "wrong"})
        assert (wrong.status_code, wrong.json()) == (403, {"message": "forbidden."})
        assert (await client.get(path, headers=right)).status_code == 200
    async with opened() as (_, client):
        assert (await client.get(path)).status_code == 200


async def test_calls_beyond_the_limit_get_429_until_the_reset(autojump_clock: MockClock) -> None:
    async with opened(rest_rate_limit=2) as (simulator, client):
        statuses, left = [], []
        for path in (CLOCK, "/v2/nothing", CLOCK):
            answer = await client.get(path)
            statuses.append(answer.status_code)
            left.append(answer.headers["X-RateLimit-Remaining"])
            assert answer.headers["X-RateLimit-Limit"] == "2"
            assert answer.headers["X-RateLimit-Reset"] == str(NOW_NS // 1_000_000_000 + 60)
        assert (statuses, left) == ([200, 404, 429], ["1", "0", "0"])
        assert answer.json() == {"code": 42910000, "message": "too many requests."}
        assert [r.status for r in simulator.rest_requests] == statuses
        await trio.sleep(60)
        assert (await client.get(CLOCK)).headers["X-RateLimit-Remaining"] == "1"


async def test_without_a_limit_there_are_no_headers(autojump_clock: MockClock) -> None:
    async with opened(rest_rate_limit=None) as (_, client):
        answers = [await client.get(CLOCK) for _ in range(300)]
        assert {answer.status_code for answer in answers} == {200}
        assert "X-RateLimit-Limit" not in answers[-1].headers


async def test_what_is_malformed_gets_alpacas_400(autojump_clock: MockClock) -> None:
    async with opened(invalid_symbols={"BAD"}) as (_, client):
        for params, message in [
            ({"symbols": "A", "feed": "nope"}, "invalid feed: nope"),
            ({"symbols": "A,BAD", "feed": "iex"}, "invalid symbol: BAD"),
            ({"feed": "iex"}, "symbols is required"),
            ({f"p{n}": "" for n in range(101)}, "too many parameters"),
        ]:
            answer = await client.get(QUOTES, params=params)
            assert (answer.status_code, answer.json()) == (
                400,
                {"code": 40010001, "message": message},
            )


async def test_only_known_endpoints_and_get(autojump_clock: MockClock) -> None:
    async with opened() as (_, client):
        missing = await client.get("/v2/assets")
        assert (missing.status_code, missing.json()) == (404, {"message": "endpoint not found."})
        assert (await client.delete(CLOCK)).status_code == 405


async def test_refuses_as_asked(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.refuse_rest(path=QUOTES, times=2)
        simulator.refuse_rest(500, 0, "internal server error")
        statuses = []
        for path in (QUOTES, LATEST, QUOTES, QUOTES):
            answer = await client.get(path, params={"symbols": "A"})
            statuses.append((answer.status_code, answer.json().get("code")))
        assert statuses == [(403, 42210000), (500, None), (403, 42210000), (200, None)]
        simulator.refuse_rest()
        simulator.resume()
        assert (await client.get(CLOCK)).status_code == 200


async def test_answers_slowly_as_asked(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.slow_rest(100)
        answer = await client.get(CLOCK, timeout=200)
        assert answer.status_code == 200
        assert trio.current_time() == pytest.approx(100)


async def test_a_client_that_gives_up_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.slow_rest(float("inf"))
        with pytest.raises(httpx.ReadTimeout):
            await client.get(CLOCK, timeout=20)
        assert trio.current_time() == pytest.approx(20)
        await simulator.until(lambda s: not s._connections)
        assert (await client.get(CLOCK)).status_code == 200


async def test_what_is_slow_comes_at_once_when_all_is_resumed(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.slow_rest(float("inf"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, CLOCK)
            await simulator.until(lambda s: bool(s.rest_requests))
            simulator.resume()
        assert trio.current_time() == 0


async def test_cuts_the_answer_in_its_middle(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.cut_rest(path=CLOCK)
        with pytest.raises(
            httpx.RemoteProtocolError, match="without sending complete message body"
        ):
            await client.get(CLOCK)
        assert (await client.get(CLOCK)).status_code == 200


async def test_stalls_in_the_middle_of_the_answer(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.cut_rest(path=CLOCK, stalls=True)
        with pytest.raises(httpx.ReadTimeout):
            await client.get(CLOCK, timeout=20)
        assert trio.current_time() == pytest.approx(20)
        await simulator.until(lambda s: not s._connections)
        assert (await client.get(CLOCK)).status_code == 200


async def test_a_simulator_that_is_away_is_a_refused_connection(autojump_clock: MockClock) -> None:
    def refuse() -> None:
        raise ConnectionRefusedError("no listener")

    async with opened() as (simulator, client):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulator, "connect", refuse)
            with pytest.raises(httpx.ConnectError, match="no listener"):
                await client.get(CLOCK)
        assert (await client.get(CLOCK)).status_code == 200


async def test_garbles_the_answer(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.garble_rest()
        answer = await client.get(LATEST, params={"symbols": "A"})
        assert answer.status_code == 200
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            answer.json()


async def test_a_script_has_rest_faults_too(autojump_clock: MockClock) -> None:
    script = (Planned(RefuseRest(503), after_s=5), Planned(CutRest(), after_quotes=1))
    async with opened(faults=script) as (simulator, client):
        assert (await client.get(CLOCK)).status_code == 200
        await trio.sleep(6)
        assert (await client.get(CLOCK)).status_code == 503
        simulator.send_quotes([SimQuote("A", 1, 2)])
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(CLOCK)


async def test_keeps_the_requests_and_no_key(autojump_clock: MockClock) -> None:
    async with opened(received_size=2) as (simulator, client):
        headers = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "hush"}
        for symbol in "ABC":
            await client.get(LATEST, params={"symbols": symbol}, headers=headers)
        assert [request.params for request in simulator.rest_requests] == [
            {"symbols": "B"},
            {"symbols": "C"},
        ]
        assert "hush" not in repr(simulator.rest_requests)


async def test_the_transport_serves_one_client_after_another(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, _):
        transport = SimulatorTransport(simulator)
        for _ in range(2):
            async with httpx.AsyncClient(transport=transport) as client:
                assert (await client.get(f"{simulator.rest_url}{CLOCK}")).status_code == 200
        await simulator.until(lambda s: not s._connections)


async def test_a_half_read_answer_does_not_hold_the_simulator_for_ever(
    autojump_clock: MockClock,
) -> None:
    async with opened() as (simulator, _):
        simulator.send_quotes([SimQuote("A", n, 99_999) for n in range(10_000)])
        stream = simulator.connect()
        await stream.send(
            f"GET {QUOTES}?symbols=A&limit=10000 HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        )
        await stream.receive()
        await simulator.until(lambda s: not s._connections)
        assert trio.current_time() == pytest.approx(30)
        idle = simulator.connect()
        await idle.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await idle.receive()
        await simulator.until(lambda s: not s._connections)
        assert trio.current_time() == pytest.approx(31)


def test_the_transport_works_on_asyncio_too() -> None:
    async def main() -> None:
        async with opened() as (simulator, client):
            simulator.send_quotes([SimQuote("A", 1, 2)])
            assert await bids(client, symbols="A") == {"A": [1]}
            simulator.slow_rest(60)
            with pytest.raises(httpx.ReadTimeout):
                await client.get(CLOCK, timeout=0.05)

    anyio.run(main, backend="asyncio")


def test_counts_down_and_starts_again_after_a_minute() -> None:
    limit = RateLimit(2)
    quotas = [limit.take("key", now_s) for now_s in (10.0, 40.0, 69.0, 70.0)]
    assert [(q.allowed, q.remaining, q.reset_in_s) for q in quotas] == [
        (True, 1, 60),
        (True, 0, 30),
        (False, 0, 1),
        (True, 1, 60),
    ]


def test_each_key_has_its_own_calls_and_their_number_is_bounded() -> None:
    limit = RateLimit(1)
    assert all(limit.take(f"key{n}", 0.0).allowed for n in range(5_000))
    assert not limit.take("key4999", 1.0).allowed
    assert len(limit._windows) <= 1_000


@pytest.mark.parametrize(
    ("now", "is_open", "next_open", "next_close"),
    [
        # Friday morning in winter, in the hours and against them
        ("2026-11-20T15:51:44Z", True, "2026-11-23T09:30:00-05:00", "2026-11-20T16:00:00-05:00"),
        ("2026-11-20T15:51:44Z", False, "2026-11-23T09:30:00-05:00", "2026-11-23T16:00:00-05:00"),
        # Saturday, and the clocks go back on Sunday
        ("2026-10-31T15:00:00Z", False, "2026-11-02T09:30:00-05:00", "2026-11-02T16:00:00-05:00"),
        # before the open, in summer
        ("2026-07-01T12:00:00Z", False, "2026-07-01T09:30:00-04:00", "2026-07-01T16:00:00-04:00"),
    ],
)
def test_the_clock_answers_what_it_was_set_to_and_the_next_times(
    now: str, is_open: bool, next_open: str, next_close: str
) -> None:
    answer = json.loads(encode_clock(parse_rfc3339(now), is_open=is_open))
    stamp = answer.pop("timestamp")
    assert datetime.fromisoformat(stamp) == datetime.fromisoformat(now)
    assert stamp[-6:] in {"-05:00", "-04:00"}
    assert answer == {"is_open": is_open, "next_open": next_open, "next_close": next_close}


def test_the_clocks_nanoseconds_are_whole() -> None:
    answer = json.loads(encode_clock(parse_rfc3339("2026-11-20T15:51:44.000000012Z"), is_open=True))
    assert answer["timestamp"] == "2026-11-20T10:51:44.000000012-05:00"
