"""Pages of the history, and how quotes look in them."""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.timestamps import LATEST_NS, parse_rfc3339
from mdservice.simulator import SimQuote
from mdservice.simulator.http import RefusedRequest
from mdservice.simulator.market import MarketRecord
from mdservice.simulator.rest_history import (
    HistoryQuery,
    PageToken,
    RestRules,
    answer_latest,
    encode_page,
    parse_history,
    parse_latest,
    quote_row,
    read_page,
)


def recorded(*quotes: SimQuote) -> MarketRecord[SimQuote]:
    record = MarketRecord(1_000)
    record.add(quotes)
    return record


@given(
    times=st.lists(st.tuples(st.sampled_from("ABCD"), st.integers(1, 6)), max_size=40),
    start=st.integers(0, 4),
    length=st.integers(0, 6),
    limit=st.integers(1, 7),
    newest_first=st.booleans(),
)
def test_the_pages_together_are_all_quotes_sorted_and_none_twice(
    times: list[tuple[str, int]], start: int, length: int, limit: int, newest_first: bool
) -> None:
    quotes = [SimQuote(s, float(n), 1, ts_event_ns=ts) for n, (s, ts) in enumerate(times)]
    record = recorded(*quotes)
    wanted = {}
    for symbol in "ACX":
        inside = [
            q for q in quotes if q.symbol == symbol and start <= q.ts_event_ns <= start + length
        ]
        inside.sort(key=lambda q: q.ts_event_ns)
        if inside:
            wanted[symbol] = inside[::-1] if newest_first else inside
    token: PageToken | None = None
    seen: list[SimQuote] = []
    for _ in range(50):
        query = HistoryQuery(("A", "C", "X"), start, start + length, limit, newest_first, token)
        page = read_page(record, query)
        of_page = [q for part in page.records.values() for q in part]
        assert all(page.records.values())
        seen += of_page
        token = page.next_page
        if token is None:
            assert len(of_page) <= limit
            break
        assert len(of_page) == limit
    assert seen == [q for part in wanted.values() for q in part]


def test_quotes_that_come_between_two_pages_are_neither_lost_nor_repeated() -> None:
    record = recorded(*(SimQuote("A", float(n), 1, ts_event_ns=5) for n in range(3)))
    first = read_page(record, HistoryQuery(("A",), 0, 9, 2))
    record.add([SimQuote("A", 3.0, 1, ts_event_ns=5), SimQuote("A", 4.0, 1, ts_event_ns=7)])
    rest = read_page(record, HistoryQuery(("A",), 0, 9, 10, resume=first.next_page))
    assert [q.bid for q in first.records["A"] + rest.records["A"]] == [0, 1, 2, 3, 4]


def test_a_quote_has_alpacas_fields() -> None:
    quote = SimQuote(
        "BRK.B", 468.35, 469.0, 100, 200, 1_795_189_904_208_912_000, "V", "Q", ("R", "Z"), "A"
    )
    body = encode_page(
        read_page(recorded(quote), HistoryQuery(("BRK.B",), 0, 1 << 62, 1)), "quotes", quote_row
    )
    assert body == (
        b'{"quotes":{"BRK.B":[{"t":"2026-11-20T15:51:44.208912Z","ax":"Q","ap":469,"as":200,'
        b'"bx":"V","bp":468.35,"bs":100,"c":["R","Z"],"z":"A"}]},"next_page_token":null}'
    )


def test_an_empty_history_is_an_empty_object() -> None:
    body = encode_page(read_page(recorded(), HistoryQuery(("A",), 0, 1, 1)), "quotes", quote_row)
    assert json.loads(body) == {"quotes": {}, "next_page_token": None}


@pytest.mark.parametrize("ts", ["2026-11-20T15:51:44Z", "2026-11-20T15:51:44.000000001Z"])
def test_trailing_zeros_are_cut(ts: str) -> None:
    record = recorded(SimQuote.from_wire({"S": "A", "bp": 1, "ap": 2, "t": ts}))
    assert json.loads(answer_latest(record, ["A"], "quotes", quote_row))["quotes"]["A"]["t"] == ts


def test_the_latest_quote_is_the_newest_by_its_time_and_unknown_symbols_are_left_out() -> None:
    record = recorded(SimQuote("A", 2.0, 3, ts_event_ns=9), SimQuote("A", 1.0, 3, ts_event_ns=8))
    quotes = json.loads(answer_latest(record, ["A", "B"], "quotes", quote_row))["quotes"]
    assert {symbol: quote["bp"] for symbol, quote in quotes.items()} == {"A": 2}


NOW_NS = parse_rfc3339("2026-11-20T15:51:44.5Z")
MIDNIGHT_NS = parse_rfc3339("2026-11-20T00:00:00Z")
DAY_NS = 86_400_000_000_000


def history(rules: RestRules | None = None, **params: str) -> HistoryQuery:
    return parse_history({"symbols": "A", "feed": "iex", **params}, rules or RestRules(), NOW_NS)


def refusal(call: Any, *args: Any, **params: str) -> tuple[int, int, str]:
    with pytest.raises(RefusedRequest) as caught:
        call(*args, **params)
    return caught.value.status, caught.value.code, caught.value.message


def test_without_times_it_is_today_until_now_in_pages_of_a_thousand() -> None:
    assert history() == HistoryQuery(("A",), MIDNIGHT_NS, LATEST_NS, 1_000)


def test_symbols_are_sorted_and_named_once() -> None:
    assert history(symbols="MSFT,AAPL,,BRK.B,AAPL").symbols == ("AAPL", "BRK.B", "MSFT")


def test_reads_times_with_nanoseconds_and_offsets() -> None:
    query = history(start="2026-11-20T10:00:00.000000001-05:00", end="2026-11-20T15:00:00.5Z")
    assert query.start_ns == parse_rfc3339("2026-11-20T15:00:00.000000001Z")
    assert query.end_ns == parse_rfc3339("2026-11-20T15:00:00.5Z")


def test_a_date_is_its_whole_day() -> None:
    query = history(start="2026-11-20", end="2026-11-20")
    assert (query.start_ns, query.end_ns) == (MIDNIGHT_NS, MIDNIGHT_NS + DAY_NS - 1)


def test_a_page_is_never_larger_than_the_simulator_allows() -> None:
    rules = RestRules(page_size=5)
    assert history(rules, limit="10000").limit == 5
    assert history(rules, limit="3").limit == 3


def test_what_is_too_young_is_not_there_yet() -> None:
    rules = RestRules(lag_s=2.5)
    assert history(rules).end_ns == NOW_NS - 2_500_000_000
    assert history(rules, end="2026-11-20T10:00:00Z").end_ns == parse_rfc3339(
        "2026-11-20T10:00:00Z"
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"symbols": ""}, "symbols is required"),
        ({"symbols": ","}, "symbols is required"),
        ({"symbols": "A,*"}, "invalid symbol: *"),
        ({"symbols": "aapl"}, "invalid symbol: aapl"),
        ({"symbols": "A, B"}, "invalid symbol:  B"),
        ({"symbols": "A,BAD"}, "invalid symbol: BAD"),
        ({"feed": "simulator"}, "invalid feed: simulator"),
        ({"feed": "overnight"}, "invalid feed: overnight"),
        ({"start": "yesterday"}, "invalid start: yesterday"),
        ({"end": "2026-02-30"}, "invalid end: 2026-02-30"),
        ({"start": "2026-11-20T10:00:00 05:00"}, "invalid start: 2026-11-20T10:00:00 05:00"),
        ({"start": "2026-11-21", "end": "2026-11-20"}, "end should not be before start"),
        ({"limit": "0"}, "limit must be between 1 and 10000"),
        ({"limit": "10001"}, "limit must be between 1 and 10000"),
        ({"limit": "-1"}, "invalid limit: -1"),
        ({"limit": "1e3"}, "invalid limit: 1e3"),
        ({"limit": "9" * 5_000}, "invalid limit: " + "9" * 40),
        ({"sort": "up"}, "invalid sort: up"),
        ({"page_token": "x"}, "invalid page_token"),
        ({"page_token": "A" * 4_000}, "invalid page_token"),
        ({"page_token": "////"}, "invalid page_token"),
        ({"page_token": PageToken("B", NOW_NS, 1).text()}, "invalid page_token"),
        ({"page_token": PageToken("A", MIDNIGHT_NS - 1, 1).text()}, "invalid page_token"),
        ({"page_token": PageToken("A", NOW_NS, 0).text()}, "invalid page_token"),
    ],
)
def test_what_is_malformed_is_400(params: dict[str, str], message: str) -> None:
    rules = RestRules(invalid_symbols=frozenset({"BAD"}))
    assert refusal(history, rules, **params) == (400, 40010001, message)


def test_the_feed_is_sip_where_none_is_named() -> None:
    rules = RestRules(history_feeds=frozenset({"iex"}))
    assert refusal(history, rules, feed="") == (400, 40010001, "invalid feed: sip")


def test_recent_sip_is_refused_on_the_free_plan() -> None:
    free = RestRules(refuse_recent_sip=True)
    denied = (403, 42210000, "subscription does not permit querying recent SIP data")
    assert refusal(history, free, feed="sip", end="2026-11-20T15:36:44.500000001Z") == denied
    old = history(free, feed="sip", end="2026-11-20T15:36:44.5Z")
    assert old.end_ns == parse_rfc3339("2026-11-20T15:36:44.5Z")
    assert history(free, feed="sip").end_ns == old.end_ns
    assert history(free, end="2026-11-20T15:51:44Z").end_ns > old.end_ns
    with pytest.raises(RefusedRequest, match="recent SIP"):
        parse_latest({"symbols": "A"}, free)


def test_latest_quotes_have_feeds_of_their_own() -> None:
    assert parse_latest({"symbols": "B,A", "feed": "overnight"}, RestRules()) == ("A", "B")
    assert refusal(parse_latest, {"symbols": "A", "feed": "test"}, RestRules()) == (
        400,
        40010001,
        "invalid feed: test",
    )


@given(
    token=st.builds(
        PageToken,
        st.sampled_from(["A", "BRK.B", "BTC/USD"]),
        st.integers(0, LATEST_NS),
        st.integers(1, 1 << 40),
    )
)
def test_a_page_token_reads_as_it_was_written(token: PageToken) -> None:
    assert PageToken.parse(token.text()) == token


@given(text=st.text(max_size=300) | st.binary(max_size=60).map(lambda b: b64encode(b).decode()))
def test_any_other_page_token_is_refused_and_nothing_worse(text: str) -> None:
    with suppress(RefusedRequest):
        PageToken.parse(text)
