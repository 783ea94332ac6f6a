"""Past quotes over REST: every page, all nanoseconds, limits obeyed, refusals told apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

import mdservice.feed.alpaca.rest as rest_module
from mdservice.errors import HistoryRefused, HistoryUnavailable, SymbolsRefused
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory, AlpacaMarketClock
from mdservice.feed.history import HalvingHistory
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from mdservice.simulator.transport import SimulatorTransport
from mdservice.testing import VirtualClock

START_NS = 1_795_186_800 * 10**9  # where the virtual clock begins
END_NS = START_NS + 10**9
HISTORY, LATEST = "/v2/stocks/quotes", "/v2/stocks/quotes/latest"
BOTH = ("past", "latest")


@asynccontextmanager
async def opened(
    *, feed: str = "iex", key: str = "key", clock: VirtualClock | None = None, **config: Any
) -> AsyncIterator[tuple[Simulator, AlpacaHistory]]:
    clock = clock or VirtualClock()
    with anyio.fail_after(600):
        settings = SimulatorConfig(**{"rate": 0, **config})
        async with open_simulator(settings, port=None, clock=clock) as simulator:
            yield (
                simulator,
                AlpacaHistory(
                    simulator.rest_url + "/",
                    feed,
                    Credentials(key, "secret"),
                    clock,
                    SimulatorTransport(simulator),
                ),
            )


async def ask(history: AlpacaHistory | HalvingHistory[Quote], call: str, *symbols: str) -> Any:
    names = symbols or ("AAPL",)
    if isinstance(history, HalvingHistory):  # of one kind already
        if call == "latest":
            return await history.latest(names)
        return await history.past(names, START_NS, END_NS)
    if call == "latest":
        return await history.latest(QUOTES, names)
    return await history.past(QUOTES, names, START_NS, END_NS)


def quotes_of(*symbols: str, each: int) -> list[SimQuote]:
    return [
        SimQuote(symbol, n + 0.25, n + 0.5, n, n + 1, START_NS + n * 1_001)
        for n in range(1, each + 1)
        for symbol in symbols
    ]


def canned(status: int, content: bytes = b"", headers: Any = None) -> httpx.MockTransport:
    return httpx.MockTransport(
        lambda _: httpx.Response(status, content=content, headers=headers or {})
    )


def with_transport(transport: httpx.AsyncBaseTransport) -> AlpacaHistory:
    credentials = Credentials("key", "secret")
    return AlpacaHistory("http://data", "iex", credentials, VirtualClock(), transport)


# ---- what comes back


async def test_every_page_is_read(autojump_clock: Any) -> None:
    async with opened(rest_page_size=7) as (simulator, history):
        simulator.send_quotes(quotes_of("AAPL", "MSFT", each=50))
        found = await ask(history, "past", "AAPL", "MSFT")
        for symbol in ("AAPL", "MSFT"):
            assert [q.bid for q in found if q.symbol == symbol] == [n + 0.25 for n in range(1, 51)]
        assert len(simulator.rest_requests) == 15
        assert {r.params["limit"] for r in simulator.rest_requests} == {"10000"}


async def test_fields_and_nanoseconds_are_whole(autojump_clock: Any) -> None:
    async with opened() as (simulator, history):
        simulator.send_quotes([SimQuote("AAPL", 187.12, 0, 200, 0, START_NS + 208_912_345)])
        for call in BOTH:
            (quote,) = await ask(history, call)
            assert (quote.symbol, quote.bid, quote.ask) == ("AAPL", 187.12, 0)
            assert (quote.bid_size, quote.ask_size, quote.seq) == (200, 0, 0)
            assert quote.ts_event_ns == START_NS + 208_912_345
            assert quote.ts_recv_ns == START_NS


async def test_start_and_end_are_included_to_the_nanosecond(autojump_clock: Any) -> None:
    async with opened() as (simulator, history):
        times = [START_NS + n for n in range(10)]
        simulator.send_quotes([SimQuote("AAPL", 1, 2, ts_event_ns=t) for t in times])
        found = await history.past(QUOTES, ["AAPL"], START_NS + 3, START_NS + 6)
        assert [quote.ts_event_ns for quote in found] == times[3:7]


@pytest.mark.parametrize("feed", ["iex", "sip", "boats"])
async def test_the_feed_is_always_passed(autojump_clock: Any, feed: str) -> None:
    async with opened(feed=feed, rest_page_size=1) as (simulator, history):
        simulator.send_quotes(quotes_of("AAPL", each=3))
        for call in BOTH:
            await ask(history, call)
        assert [r.params.get("feed") for r in simulator.rest_requests] == [feed] * 4


async def test_the_simulators_own_feed_has_no_name_for_rest(autojump_clock: Any) -> None:
    async with opened(feed="simulator") as (simulator, history):
        simulator.send_quotes(quotes_of("AAPL", each=3))
        assert len(await ask(history, "past")) == 3
        assert len(await ask(history, "latest")) == 1


@pytest.mark.parametrize("feed", ["test", "delayed_sip", "overnight"])
async def test_feeds_without_history_are_not_asked(autojump_clock: Any, feed: str) -> None:
    async with opened(feed=feed) as (simulator, history):
        with pytest.raises(HistoryRefused, match=feed):
            await ask(history, "past")
        assert not simulator.rest_requests


async def test_many_symbols_are_asked_for_in_parts(autojump_clock: Any) -> None:
    symbols = [f"S{number}" for number in range(450)]
    async with opened() as (simulator, history):
        simulator.send_quotes(quotes_of(*symbols, each=2))
        assert len(await ask(history, "past", *symbols)) == 900
        assert {q.symbol for q in await ask(history, "latest", *symbols)} == set(symbols)
        asked = [len(r.params["symbols"].split(",")) for r in simulator.rest_requests]
        assert asked == [200, 200, 50] * 2


async def test_one_answer_is_bounded(autojump_clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_module, "_MOST_RECORDS", 20)
    async with opened(rest_page_size=7) as (simulator, history):
        simulator.send_quotes(quotes_of("AAPL", each=100))
        with pytest.raises(HistoryRefused, match="too many"):
            await ask(history, "past")
        assert len(simulator.rest_requests) == 3


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("status", [400, 404, 413, 414, 422])
async def test_a_refused_symbol_costs_itself(autojump_clock: Any, call: str, status: int) -> None:
    symbols = [f"S{number}" for number in range(250)]
    async with opened(rest_page_size=30) as (simulator, history):
        simulator.send_quotes(quotes_of(*symbols, each=2))
        simulator.refuse_rest(status, 0, "no", symbol="S77", times=1_000)
        found = await ask(HalvingHistory(history, QUOTES), call, *symbols)
        assert {q.symbol for q in found.records} == set(symbols) - {"S77"}
        assert len(found.records) == 249 * (2 if call == "past" else 1)
        assert list(found.refused) == ["S77"]


@pytest.mark.parametrize(
    ("status", "code"), [(400, 0), (404, 0), (414, 0), (422, 0), (403, 0), (422, 42210000)]
)
async def test_refusals_that_a_symbol_may_cause_are_recognised(
    autojump_clock: Any, status: int, code: int
) -> None:
    async with opened() as (simulator, history):
        simulator.refuse_rest(status, code, "no")
        with pytest.raises(HistoryRefused) as refusal:
            await ask(history, "latest", "AAPL", "MSFT")
    assert isinstance(refusal.value, SymbolsRefused) is (status != 403 and not code)


async def test_halving_keeps_to_the_rate_limit(autojump_clock: Any) -> None:
    symbols = [f"S{number}" for number in range(100)]
    async with opened(rest_rate_limit=None) as (simulator, history):
        simulator.send_quotes(quotes_of(*symbols, each=1))
        simulator.refuse_rest(429, 0, "too many requests.", times=2)
        simulator.refuse_rest(400, 0, "no", symbol="S77", times=1_000)
        found = await ask(HalvingHistory(history, QUOTES), "latest", *symbols)
        assert len(found.records) == 99


# ---- the rate limit


async def test_with_nothing_remaining_it_waits_for_the_reset(autojump_clock: Any) -> None:
    async with opened(rest_rate_limit=2, rest_page_size=1) as (simulator, history):
        await anyio.sleep(50)
        simulator.send_quotes(quotes_of("AAPL", each=2))
        await ask(history, "latest")
        await anyio.sleep(47)  # 13 s before all calls are there again
        assert len(await ask(history, "past")) == 2
        assert 110 <= anyio.current_time() <= 111
        assert [r.status for r in simulator.rest_requests] == [200] * 3, "not one was refused"


async def test_a_reset_that_is_far_off_is_a_refusal(autojump_clock: Any) -> None:
    """Live quotes do not wait for it."""
    async with opened(rest_rate_limit=1) as (simulator, history):
        await ask(history, "latest")
        with pytest.raises(HistoryRefused, match="used up"):
            await ask(history, "latest")
        assert anyio.current_time() == 0
        assert len(simulator.rest_requests) == 1, "it was not even asked"
        await anyio.sleep(61)
        await ask(history, "latest")


async def test_another_program_has_used_the_calls_up(autojump_clock: Any) -> None:
    """The first this one hears of it is 429."""
    async with opened(rest_rate_limit=1) as (simulator, history):
        other = AlpacaHistory(
            simulator.rest_url,
            "iex",
            Credentials("key", "secret"),
            VirtualClock(),
            SimulatorTransport(simulator),
        )
        await ask(other, "latest")
        await anyio.sleep(50)
        await ask(history, "latest")
        assert [r.status for r in simulator.rest_requests] == [200, 429, 200]
        assert 60 <= anyio.current_time() <= 61


@pytest.mark.parametrize("headers", [{}, {"X-RateLimit-Remaining": "x", "X-RateLimit-Reset": "-"}])
async def test_429_without_a_word_on_when_is_tried_again_a_few_times(
    autojump_clock: Any, headers: Any
) -> None:
    with pytest.raises(HistoryUnavailable, match="used up"):
        await ask(with_transport(canned(429, headers=headers)), "latest")
    assert 0 < anyio.current_time() <= 10


# ---- refusals and outages


@pytest.mark.parametrize("call", BOTH)
async def test_recent_sip_history_is_refused(autojump_clock: Any, call: str) -> None:
    async with opened(feed="sip", refuse_recent_sip=True) as (_, history):
        with pytest.raises(HistoryRefused, match="42210000 subscription does not permit"):
            await ask(history, call)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
@pytest.mark.parametrize("call", BOTH)
async def test_a_no_is_a_refusal(autojump_clock: Any, call: str, status: int) -> None:
    async with opened() as (simulator, history):
        simulator.refuse_rest(status, 0, "forbidden.")
        with pytest.raises(HistoryRefused, match=f"{status}: forbidden"):
            await ask(history, call)


async def test_wrong_keys_are_a_refusal_that_does_not_show_them(autojump_clock: Any) -> None:
    async with opened(key="PKWRONG", secret="right") as (_, history):
        with pytest.raises(HistoryRefused) as caught:
            await ask(history, "latest")
        assert "PKWRONG" not in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("call", BOTH)
async def test_a_server_in_trouble_is_worth_another_try(
    autojump_clock: Any, call: str, status: int
) -> None:
    async with opened() as (simulator, history):
        simulator.refuse_rest(status, 0, "")
        with pytest.raises(HistoryUnavailable, match=str(status)):
            await ask(history, call)
        await ask(history, call)


@pytest.mark.parametrize("fault", ["cut_rest", "garble_rest"])
@pytest.mark.parametrize("call", BOTH)
async def test_a_broken_answer_is_worth_another_try(
    autojump_clock: Any, call: str, fault: str
) -> None:
    async with opened() as (simulator, history):
        simulator.send_quotes(quotes_of("AAPL", each=3))
        getattr(simulator, fault)()
        with pytest.raises(HistoryUnavailable):
            await ask(history, call)
        assert await ask(history, call)


@pytest.mark.parametrize("call", BOTH)
async def test_an_answer_that_does_not_come_ends_in_time(autojump_clock: Any, call: str) -> None:
    async with opened() as (simulator, history):
        simulator.slow_rest(float("inf"))
        with pytest.raises(HistoryUnavailable):
            await ask(history, call)
        assert anyio.current_time() <= 15


async def test_a_page_that_breaks_in_the_middle_gives_nothing(autojump_clock: Any) -> None:
    """Half of the quotes would look like all of them."""
    async with opened(rest_page_size=2) as (simulator, history):
        simulator.send_quotes(quotes_of("AAPL", each=6))
        await ask(history, "past")
        count = len(simulator.rest_requests)
        simulator.cut_rest(times=1)
        with pytest.raises(HistoryUnavailable):
            await ask(history, "past")
        assert len(simulator.rest_requests) == count + 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'{"quotes": 5}',
        b'{"quotes": {"AAPL": [{"t": "x", "bp": 1, "bs": 1, "ap": 1, "as": 1}]}}',
        b'{"quotes": {"AAPL": [{"t": "2026-11-20T15:00:00Z", "bp": -1, "bs": 1, "ap": 1, "as": 1}]}}',
        b'{"quotes": {"AAPL": [{"bp": 1, "bs": 1, "ap": 1, "as": 1}]}}',
    ],
)
async def test_an_answer_of_another_form_is_none(autojump_clock: Any, content: bytes) -> None:
    with pytest.raises(HistoryUnavailable, match="cannot be read"):
        await ask(with_transport(canned(200, content)), "past")


@pytest.mark.parametrize("call", BOTH)
async def test_a_broken_row_costs_itself_and_not_its_page(
    autojump_clock: Any, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = b'{"t": "2026-11-20T15:00:00Z", "bp": 1, "bs": 1, "ap": 2, "as": 1}'
    bad = b'{"t": "2026-11-20T15:00:00Z", "bp": -1, "bs": 1, "ap": 2, "as": 1}'
    no_time = good.replace(b"2026-11-20T15:00:00Z", b"noon")
    content = {
        "past": b'{"quotes": {"AAPL": [%b, %b], "MSFT": [%b]}}' % (bad, good, no_time),
        "latest": b'{"quotes": {"AAPL": %b, "MSFT": %b, "SPY": 7}}' % (good, no_time),
    }[call]
    history = with_transport(canned(200, content))
    found = await ask(history, call)
    assert [(quote.symbol, quote.bid) for quote in found] == [("AAPL", 1)]
    assert history.rows_skipped == 2
    assert "history_rows_skipped count=2" in caplog.text


BAD_SYMBOLS = (
    r"../x\r\n", "  ", "A B", r"A\u0000", r"\u001b", "A" * 60, "*", "", ".A", r"\u00c4",
    r"\ud800", r"A\ud800B",
)  # fmt: skip


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("symbol", BAD_SYMBOLS)
async def test_a_bad_symbol_costs_itself_and_not_its_page(
    autojump_clock: Any, call: str, symbol: str
) -> None:
    row = '{"t": "2026-11-20T15:00:00Z", "bp": 1, "bs": 1, "ap": 2, "as": 1}'
    rows = f"[{row}]" if call == "past" else row
    content = f'{{"quotes": {{"AAPL": {rows}, "{symbol}": {rows}, "MSFT": {rows}}}}}'.encode()
    history = HalvingHistory(with_transport(canned(200, content)), QUOTES)
    if call == "latest":
        found = await history.latest(["AAPL"])
    else:
        found = await history.past(["AAPL"], START_NS, END_NS)
    assert [quote.symbol for quote in found.records] == ["AAPL"]
    assert (history.decode_errors, history.unfollowed) == (1, 1)


@pytest.mark.parametrize("content", [b"{}", b'{"quotes": null}', b'{"quotes": {}}'])
@pytest.mark.parametrize("call", BOTH)
async def test_no_quotes_are_none(autojump_clock: Any, call: str, content: bytes) -> None:
    assert await ask(with_transport(canned(200, content)), call) == []


@pytest.mark.parametrize("token", [b'""', b"null"])
async def test_an_empty_page_token_is_the_end(autojump_clock: Any, token: bytes) -> None:
    content = b'{"quotes": {}, "next_page_token": %b}' % token
    assert await ask(with_transport(canned(200, content)), "past") == []


@pytest.mark.parametrize("url", ["http://data:99999999", "http://[::x", "data"])
async def test_a_url_that_leads_nowhere_is_no_answer(url: str) -> None:
    history = AlpacaHistory(url, "iex", Credentials("key", "secret"), VirtualClock())
    with pytest.raises(HistoryUnavailable):
        await ask(history, "latest")


async def test_cancelled_it_leaves_no_connection(autojump_clock: Any) -> None:
    async with opened() as (simulator, history):
        simulator.slow_rest(1_000)
        with anyio.move_on_after(1):
            await ask(history, "past")
        await anyio.sleep(1)
        assert not simulator._connections


def clock_of(simulator: Any, feed: str = "iex") -> AlpacaMarketClock:
    return AlpacaMarketClock(
        simulator.rest_url + "/", feed, Credentials("key", "secret"), SimulatorTransport(simulator)
    )


@pytest.mark.parametrize("feed", ["iex", "sip", "delayed_sip"])
async def test_the_exchanges_hours_are_asked(autojump_clock: Any, feed: str) -> None:
    config = SimulatorConfig(rate=0)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        market = clock_of(simulator, feed)
        for is_open in (True, False):
            simulator.market_open = is_open
            assert await market.is_open() is is_open


@pytest.mark.parametrize("feed", ["test", "boats", "overnight", "simulator"])
async def test_some_feeds_are_always_open_and_need_no_request(
    autojump_clock: Any, feed: str
) -> None:
    config = SimulatorConfig(rate=0)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        simulator.market_open = False
        assert await clock_of(simulator, feed).is_open()
        assert not simulator.rest_requests


@pytest.mark.parametrize("fault", ["refuse_rest", "cut_rest", "garble_rest", "slow_rest"])
async def test_without_an_answer_it_counts_as_open(autojump_clock: Any, fault: str) -> None:
    config = SimulatorConfig(rate=0)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        simulator.market_open = False
        if fault == "slow_rest":
            simulator.slow_rest(1_000)
        else:
            getattr(simulator, fault)()
        assert await clock_of(simulator).is_open()
        assert anyio.current_time() <= 6
        assert not await clock_of(simulator).is_open()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[::x", "paper"])
async def test_where_no_answer_is_possible_it_counts_as_open(url: str) -> None:
    with anyio.fail_after(10):
        assert await AlpacaMarketClock(url, "iex", Credentials("key", "secret")).is_open()


async def test_a_reason_is_logged_once_until_it_is_another(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = SimulatorConfig(rate=0)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        market = clock_of(simulator)
        for status, logged in ((404, 1), (404, 1), (503, 2), (404, 3)):
            simulator.refuse_rest(status)
            assert await market.is_open()
            assert caplog.text.count("market_hours_unknown") == logged
