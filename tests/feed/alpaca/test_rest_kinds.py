"""Every kind of record of every feed over REST: what is asked, and what the rows become."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import httpx
import pytest

from mdservice.errors import HistoryUnavailable, NoHistory
from mdservice.feed.alpaca.codec import Codec
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory, AlpacaMarketClock
from mdservice.feed.alpaca.rest_messages import ARTICLES, QUOTE_ROWS
from mdservice.feed.history import HalvingHistory
from mdservice.model.bar import Bar
from mdservice.model.feeds import CRYPTO, FEEDS, NEWS_FEED, OPTIONS, STOCKS, Feed
from mdservice.model.kinds import (
    BARS,
    DAILY_BARS,
    KINDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    TRADES,
    Kind,
    Repair,
)
from mdservice.model.news import Article
from mdservice.model.order_book import OrderBook
from mdservice.model.quote import Quote
from mdservice.model.trade import Trade
from mdservice.testing import VirtualClock

START_NS = 1_795_186_800 * 10**9  # where the virtual clock begins
END_NS = START_NS + 3_600 * 10**9
T, T_NS = "2026-11-20T15:51:44.208912345Z", 1_795_189_904_208_912_345
M, M_NS = "2026-11-20T15:51:00Z", 1_795_189_860 * 10**9
OPTION = "AAPL261218C00200000"
VARIANTS = {"stocks": "iex", "crypto": "us", "options": "indicative", "news": "news"}

QUOTE_ROW = {"t": T, "bx": "V", "bp": 187.12, "bs": 2, "ax": "V", "ap": 187.15, "as": 3, "c": ["R"]}
TRADE_ROW = {"t": T, "x": "D", "p": 126.55, "s": 1, "c": ["@", "I"], "i": 96921, "z": "C"}
CRYPTO_TRADE_ROW = {"t": T, "p": 66102.5, "s": 0.0012, "i": 3447222699101865076, "tks": "S"}
OPTION_TRADE_ROW = {"t": T, "x": "C", "p": 4.15, "s": 2, "c": "S"}
BAR_ROW = {"t": M, "o": 1.5, "h": 2.5, "l": 1.0, "c": 2.0, "v": 100, "n": 3, "vw": 1.75}
BOOK_ROW = {"t": T, "b": [{"p": 66102.5, "s": 0.25}], "a": [{"p": 66108.1, "s": 0.5}]}
ARTICLE_ROW = {
    "id": 7, "headline": "H", "summary": "S", "author": "A", "content": "C", "images": [{}],
    "url": "https://example.com/7", "symbols": ["AAPL", "MSFT"], "source": "benzinga",
    "created_at": M, "updated_at": T,
}  # fmt: skip


def trade_of(row: dict[str, Any], symbol: str) -> Trade:
    side = {"taker_side": "sell"} if symbol == "BTC/USD" else {}
    conditions = row.get("c", ())
    return Trade(
        symbol, row["p"], row["s"], row.get("x"), tuple(conditions), row.get("z"), row.get("i"),
        T_NS, START_NS, **side,
    )  # fmt: skip


def quote_of(symbol: str) -> Quote:
    return Quote(symbol, 187.12, 187.15, 2, 3, T_NS, START_NS)


def bar_of(symbol: str) -> Bar:
    return Bar(symbol, 1.5, 2.5, 1.0, 2.0, 100, 3, 1.75, M_NS, START_NS)


ARTICLE = Article(
    7, "H", "S", "A", "C", "https://example.com/7", "benzinga", ("AAPL", "MSFT"), M, T, T_NS,
    START_NS,
)  # fmt: skip
BOOK = OrderBook("BTC/USD", ((66102.5, 0.25),), ((66108.1, 0.5),), T_NS, START_NS)


@attrs.frozen
class Case:
    feed: Feed
    kind: Kind[Any]
    row: dict[str, Any]
    record: Any
    past: str | None
    latest: str | None
    """The path; None where it is the newest of the past ones."""
    query: dict[str, str]
    """Besides symbols, times, limit and sort."""
    latest_query: dict[str, str]

    @property
    def symbol(self) -> str:
        return {"crypto": "BTC/USD", "options": OPTION}.get(self.feed.name, "AAPL")

    @property
    def field(self) -> str:
        return "bars" if self.kind is DAILY_BARS else self.kind.channel

    def __str__(self) -> str:
        return f"{self.feed.name} {self.kind.channel}"


IEX, INDICATIVE = {"feed": "iex"}, {"feed": "indicative"}
STOCK, COIN, CONTRACT = "/v2/stocks", "/v1beta3/crypto/us", "/v1beta1/options"
MINUTES, DAYS, WHOLE = {"timeframe": "1Min"}, {"timeframe": "1Day"}, {"include_content": "true"}
CASES = [
    Case(STOCKS, QUOTES, QUOTE_ROW, quote_of("AAPL"), f"{STOCK}/quotes", f"{STOCK}/quotes/latest", IEX, IEX),
    Case(STOCKS, TRADES, TRADE_ROW, trade_of(TRADE_ROW, "AAPL"), f"{STOCK}/trades", f"{STOCK}/trades/latest", IEX, IEX),
    Case(STOCKS, BARS, BAR_ROW, bar_of("AAPL"), f"{STOCK}/bars", f"{STOCK}/bars/latest", IEX | MINUTES, IEX),
    Case(STOCKS, DAILY_BARS, BAR_ROW, bar_of("AAPL"), f"{STOCK}/bars", None, IEX | DAYS, {}),
    Case(CRYPTO, QUOTES, QUOTE_ROW, quote_of("BTC/USD"), f"{COIN}/quotes", f"{COIN}/latest/quotes", {}, {}),
    Case(
        CRYPTO, TRADES, CRYPTO_TRADE_ROW, trade_of(CRYPTO_TRADE_ROW, "BTC/USD"), f"{COIN}/trades",
        f"{COIN}/latest/trades", {}, {},
    ),
    Case(CRYPTO, BARS, BAR_ROW, bar_of("BTC/USD"), f"{COIN}/bars", f"{COIN}/latest/bars", MINUTES, {}),
    Case(CRYPTO, DAILY_BARS, BAR_ROW, bar_of("BTC/USD"), f"{COIN}/bars", None, DAYS, {}),
    Case(CRYPTO, ORDERBOOKS, BOOK_ROW, BOOK, None, f"{COIN}/latest/orderbooks", {}, {}),
    Case(OPTIONS, QUOTES, QUOTE_ROW, quote_of(OPTION), None, f"{CONTRACT}/quotes/latest", {}, INDICATIVE),
    Case(
        OPTIONS, TRADES, OPTION_TRADE_ROW, trade_of(OPTION_TRADE_ROW, OPTION), f"{CONTRACT}/trades",
        f"{CONTRACT}/trades/latest", {}, INDICATIVE,
    ),
    Case(OPTIONS, DAILY_BARS, BAR_ROW, bar_of(OPTION), f"{CONTRACT}/bars", None, DAYS, {}),
    Case(
        NEWS_FEED, NEWS, ARTICLE_ROW, ARTICLE, "/v1beta1/news", "/v1beta1/news", WHOLE,
        WHOLE | {"sort": "desc", "limit": "1"},
    ),
]  # fmt: skip
PAST = [case for case in CASES if case.past is not None]
all_cases = pytest.mark.parametrize("case", CASES, ids=str)
past_cases = pytest.mark.parametrize("case", PAST, ids=str)
Answering = Callable[[httpx.Request], Any]


def answer(case: Case, *rows: dict[str, Any], latest: bool = False) -> dict[str, Any]:
    """An answer of the API with these rows of the case's symbol."""
    if case.kind is NEWS:
        return {"news": list(rows), "next_page_token": None}
    if latest and case.latest is not None:
        return {case.field: {case.symbol: rows[0]} if rows else {}}
    return {case.field: {case.symbol: list(rows)}, "next_page_token": None}


class Api:
    """Answers requests and remembers them."""

    def __init__(
        self,
        case: Case,
        answering: Answering,
        base: str = "http://data",
        *,
        keep_wire: bool = False,
    ) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._answering = answering
        self.history = AlpacaHistory(
            base,
            VARIANTS[case.feed.name],
            Credentials("key", "secret"),
            VirtualClock(),
            httpx.MockTransport(self._answer),
            feed=case.feed,
            keep_wire=keep_wire,
        )

    def _answer(self, asked: httpx.Request) -> httpx.Response:
        self.requests.append((asked.url.path, dict(asked.url.params)))
        return httpx.Response(200, content=json.dumps(self._answering(asked)).encode())

    async def past(self, case: Case, *symbols: str) -> Sequence[Any]:
        return await self.history.past(case.kind, symbols or (case.symbol,), START_NS, END_NS)


def changed(case: Case, **fields: Any) -> dict[str, Any]:
    return {**case.row, **fields}


@past_cases
async def test_past_records_are_those_of_the_stream(case: Case, autojump_clock: Any) -> None:
    api = Api(case, lambda _: answer(case, case.row))
    assert await api.past(case) == [case.record]
    (asked,) = api.requests
    assert asked == (
        case.past,
        {
            "symbols": case.symbol,
            "start": "2026-11-20T15:00:00.000000000Z",
            "end": "2026-11-20T16:00:00.000000000Z",
            "limit": "50" if case.kind is NEWS else "10000",
            "sort": "asc",
            **case.query,
        },
    )


@all_cases
async def test_the_latest_record_is_that_of_the_stream(case: Case, autojump_clock: Any) -> None:
    api = Api(case, lambda _: answer(case, case.row, latest=True))
    assert await api.history.latest(case.kind, [case.symbol]) == [case.record]
    ((path, query),) = api.requests
    if case.latest is None:
        assert path == case.past
        assert (query["start"], query["end"]) == (
            "2026-11-13T15:00:00.000000000Z",
            "2026-11-20T15:00:00.000000000Z",
        )
    else:
        assert (path, query) == (case.latest, {"symbols": case.symbol, **case.latest_query})


TAGS = {QUOTES: "q", TRADES: "t", BARS: "b", DAILY_BARS: "d", ORDERBOOKS: "o", NEWS: "n"}


@all_cases
async def test_a_record_may_keep_its_row_as_the_message_of_a_stream(
    case: Case, autojump_clock: Any
) -> None:
    expected: dict[str, Any] = {"T": TAGS[case.kind]}
    if case.kind is not NEWS:
        expected["S"] = case.symbol
    if case.kind is ORDERBOOKS:
        expected["r"] = True
    expected |= case.row
    bad = [] if case.past is None else [{}]
    for rows in ([case.row], [case.row, *bad]):
        api = Api(case, lambda _, rows=rows: answer(case, *rows, latest=True), keep_wire=True)
        found = [*await api.history.latest(case.kind, [case.symbol])]
        if case.past is not None:
            api = Api(case, lambda _, rows=rows: answer(case, *rows), keep_wire=True)
            found += await api.past(case)
        for record in found:
            assert record == case.record
            assert list(json.loads(record.wire).items()) == list(expected.items())
            (again,) = Codec("json").decode([b"[" + record.wire + b"]"], START_NS).of(case.kind)
            assert again == record


@all_cases
async def test_a_record_keeps_no_row_without_being_asked(case: Case, autojump_clock: Any) -> None:
    api = Api(case, lambda _: answer(case, case.row, latest=True))
    (record,) = await api.history.latest(case.kind, [case.symbol])
    assert record.wire is None


async def test_a_kept_row_has_the_digits_of_the_answer(autojump_clock: Any) -> None:
    row = b'{ "t":"%s", "bp":1.10, "bs":2, "ap":1.200, "as":3e0 }' % T.encode()
    content = b'{"quotes":{"BRK.B":[%s]}}' % row
    history = AlpacaHistory(
        "http://data",
        "iex",
        Credentials("key", "secret"),
        VirtualClock(),
        httpx.MockTransport(lambda _: httpx.Response(200, content=content)),
        keep_wire=True,
    )
    (quote,) = await history.past(QUOTES, ["BRK.B"], START_NS, END_NS)
    assert quote.wire == b'{"T":"q","S":"BRK.B",' + row[1:]


@pytest.mark.parametrize("missing", ["null", "left out"])
@all_cases
async def test_what_was_not_sent_is_none(case: Case, missing: str, autojump_clock: Any) -> None:
    needed = ("t", "p", "s", "bp", "bs", "ap", "as", "id", "updated_at", "l", "h", "v")
    needed += ("o", "c") if case.kind in (BARS, DAILY_BARS) else ()
    row = {key: value for key, value in case.row.items() if key in needed}
    if missing == "null":
        row |= {key: None for key in case.row if key not in needed}
    api = Api(case, lambda _: answer(case, row, latest=True))
    (record,) = await api.history.latest(case.kind, [case.symbol])
    assert record.ts_event_ns == case.record.ts_event_ns
    assert api.history.rows_skipped == 0
    if case.kind is TRADES:
        assert (record.exchange, record.conditions, record.id, record.tape) == (
            None,
            (),
            None,
            None,
        )


@past_cases
async def test_every_page_is_read(case: Case, autojump_clock: Any) -> None:
    key = "updated_at" if case.kind is NEWS else "t"
    rows = [changed(case, **{key: f"2026-11-20T15:51:{n:02d}Z"}) for n in range(7)]

    def page(asked: httpx.Request) -> Any:
        start = int(asked.url.params.get("page_token", 0))
        token = str(start + 3) if start + 3 < len(rows) else None
        return {**answer(case, *rows[start : start + 3]), "next_page_token": token}

    api = Api(case, page)
    found = await api.past(case)
    first_ns = M_NS
    assert [record.ts_event_ns for record in found] == [first_ns + n * 10**9 for n in range(7)]
    assert [query.get("page_token") for _, query in api.requests] == [None, "3", "6"]


@past_cases
async def test_no_records_are_none(case: Case, autojump_clock: Any) -> None:
    for content in ({}, {case.field: None}, answer(case)):
        assert await Api(case, lambda _, content=content: content).past(case) == []
    assert await Api(case, lambda _: {}).history.past(case.kind, [], START_NS, END_NS) == []


@all_cases
async def test_a_broken_row_costs_itself(case: Case, autojump_clock: Any) -> None:
    broken: list[Any] = [7, None, {}]
    if case.kind is NEWS:
        broken += [changed(case, id="x"), changed(case, updated_at="noon"), changed(case, url=7)]
    else:
        broken += [changed(case, t="noon"), changed(case, t=None)]
    number = next((key for key in ("p", "o", "bp") if key in case.row), None)
    if number is not None:
        broken += [changed(case, **{number: value}) for value in (-1, "1", 1e15)]
    if case.past is None:  # one row for each symbol
        rows = {case.symbol: case.row} | {f"BAD{n}": row for n, row in enumerate(broken)}
        api = Api(case, lambda _: {case.field: rows})
        found = await api.history.latest(case.kind, [case.symbol])
    else:
        api = Api(case, lambda _: answer(case, *broken, case.row, *broken))
        found = await api.past(case)
    assert found == [case.record]
    assert api.history.rows_skipped == len(broken) * (1 if case.past is None else 2)


@past_cases
async def test_an_answer_without_a_good_row_is_none(case: Case, autojump_clock: Any) -> None:
    api = Api(case, lambda _: answer(case, {}, {}))
    with pytest.raises(HistoryUnavailable, match="cannot be read"):
        await api.past(case)


@pytest.mark.parametrize("case", [case for case in PAST if case.kind is TRADES], ids=str)
async def test_trades_that_did_not_take_place_are_left_out(case: Case, autojump_clock: Any) -> None:
    rows = [changed(case, u=u) for u in ("canceled", None, "incorrect", "corrected", "")]
    api = Api(case, lambda _: answer(case, *rows))
    assert await api.past(case) == [case.record] * 3
    assert api.history.rows_skipped == 0
    api = Api(case, lambda _: answer(case, changed(case, u="canceled"), {}))
    assert (await api.past(case), api.history.rows_skipped) == ([], 1)


async def test_each_symbols_newest_daily_bar_is_its_latest(autojump_clock: Any) -> None:
    days = [{**BAR_ROW, "t": f"2026-11-{day}T05:00:00Z", "c": float(day)} for day in (18, 19, 20)]
    api = Api(CASES[3], lambda _: {"bars": {"AAPL": days, "MSFT": days[:2]}})
    found = await api.history.latest(DAILY_BARS, ["AAPL", "MSFT"])
    assert {bar.symbol: bar.close for bar in found} == {"AAPL": 20.0, "MSFT": 19.0}


def test_there_is_a_way_for_every_kind_that_is_repaired_or_refreshed() -> None:
    ways = {(case.feed, case.kind): case for case in CASES}
    for feed in FEEDS:
        for kind in feed.kinds:
            repair = feed.repair(kind)
            assert repair is not Repair.FROM_HISTORY or ways[feed, kind].past is not None
            assert repair is not Repair.LATEST or (feed, kind) in ways


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: str(feed.name))
async def test_a_kind_that_rest_does_not_have_is_not_asked_for(
    feed: Feed, autojump_clock: Any
) -> None:
    has_past = {case.kind for case in PAST if case.feed is feed}
    has_latest = {case.kind for case in CASES if case.feed is feed}
    case = next(case for case in CASES if case.feed is feed)
    api = Api(case, lambda _: {})
    for kind in KINDS:
        if kind not in has_past:
            with pytest.raises(NoHistory, match=kind.channel):
                await api.history.past(kind, ["AAPL"], START_NS, END_NS)
        if kind not in has_latest:
            with pytest.raises(NoHistory, match=kind.channel):
                await api.history.latest(kind, ["AAPL"])
    assert not api.requests


@pytest.mark.parametrize(
    "base", ["http://data", "http://data/", "http://data/v2", "http://data/v2/"]
)
@all_cases
async def test_a_base_may_end_in_the_version(case: Case, base: str, autojump_clock: Any) -> None:
    api = Api(case, lambda _: answer(case, case.row, latest=True), base)
    assert await api.history.latest(case.kind, [case.symbol]) == [case.record]
    assert api.requests[0][0] == (case.latest or case.past)


@pytest.mark.parametrize("base", ["http://paper/", "http://paper/v2", "http://paper/v2/"])
async def test_the_clocks_base_may_end_in_the_version(base: str) -> None:
    asked: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, content=b'{"is_open": false}')

    transport = httpx.MockTransport(reply)
    market = AlpacaMarketClock(base, "iex", Credentials("key", "secret"), transport)
    assert not await market.is_open()
    assert asked == ["/v2/clock"]


# News


async def test_all_news_is_asked_for_without_symbols(autojump_clock: Any) -> None:
    case = CASES[-1]
    api = Api(case, lambda _: answer(case, ARTICLE_ROW))
    assert await api.past(case, "AAPL", "*") == [ARTICLE]
    assert await api.history.latest(NEWS, ["*"]) == [ARTICLE]
    assert all("symbols" not in query for _, query in api.requests)


async def test_an_article_about_symbols_of_two_requests_comes_once_in_order(
    autojump_clock: Any,
) -> None:
    case = CASES[-1]

    def page(asked: httpx.Request) -> Any:
        own = 2 if "S0," in asked.url.params["symbols"] else 1
        return answer(
            case, {**ARTICLE_ROW, "id": own, "updated_at": f"2026-11-20T15:51:0{own}Z"}, ARTICLE_ROW
        )

    api = Api(case, page)
    found = await api.past(case, *(f"S{n}" for n in range(250)))
    assert [article.id for article in found] == [1, 2, 7]
    newest = await api.history.latest(NEWS, [f"S{n}" for n in range(250)])
    assert [article.id for article in newest] == [7]


async def test_news_is_of_the_symbols_that_were_asked_for(autojump_clock: Any) -> None:
    """An article has no symbol of its own that could be compared with them."""
    case = CASES[-1]
    history = HalvingHistory(Api(case, lambda _: answer(case, ARTICLE_ROW)).history, NEWS)
    found = await history.past(["AAPL"], START_NS, END_NS)
    assert found.records == [ARTICLE]
    assert (history.unfollowed, history.decode_errors) == (0, 0)


async def test_option_contracts_are_asked_for_a_hundred_at_a_time(autojump_clock: Any) -> None:
    case = next(case for case in CASES if case.feed is OPTIONS and case.kind is QUOTES)
    api = Api(case, lambda _: {"quotes": {}})
    await api.history.latest(QUOTES, [f"AAPL261218C{n:08d}" for n in range(250)])
    assert [len(query["symbols"].split(",")) for _, query in api.requests] == [100, 100, 50]


@pytest.mark.parametrize(("rows", "name"), [(ARTICLES, "news"), (QUOTE_ROWS, "quotes")])
def test_a_row_with_what_is_no_text_is_not_kept(rows: Any, name: str) -> None:
    row = json.dumps({**ARTICLE_ROW, **QUOTE_ROW}).encode().replace(b'"V"', b'"\xff"')
    content = b"[%b]" % row if name == "news" else b'{"AAPL":[%b]}' % row
    answer = rows.page(b'{"%b":%b}' % (name.encode(), content), 0, keep_wire=True)
    assert [record.wire for record in answer.records] == [None]
