"""Pages of the history, and how quotes look in them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.simulator import SimQuote
from mdservice.simulator.record import QuoteRecord
from mdservice.simulator.rest.quotes import (
    HistoryQuery,
    PageToken,
    encode_latest,
    encode_page,
    read_page,
)


def recorded(*quotes: SimQuote) -> QuoteRecord:
    record = QuoteRecord(1_000)
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
        of_page = [q for part in page.quotes.values() for q in part]
        assert all(page.quotes.values())
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
    assert [q.bid for q in first.quotes["A"] + rest.quotes["A"]] == [0, 1, 2, 3, 4]


def test_a_quote_has_alpacas_fields() -> None:
    quote = SimQuote(
        "BRK.B", 468.35, 469.0, 100, 200, 1_795_189_904_208_912_000, "V", "Q", ("R", "Z"), "A"
    )
    body = encode_page(read_page(recorded(quote), HistoryQuery(("BRK.B",), 0, 1 << 62, 1)))
    assert body == (
        b'{"quotes":{"BRK.B":[{"t":"2026-11-20T15:51:44.208912Z","ax":"Q","ap":469,"as":200,'
        b'"bx":"V","bp":468.35,"bs":100,"c":["R","Z"],"z":"A"}]},"next_page_token":null}'
    )


def test_an_empty_history_is_an_empty_object() -> None:
    body = encode_page(read_page(recorded(), HistoryQuery(("A",), 0, 1, 1)))
    assert json.loads(body) == {"quotes": {}, "next_page_token": None}


@pytest.mark.parametrize("ts", ["2026-11-20T15:51:44Z", "2026-11-20T15:51:44.000000001Z"])
def test_trailing_zeros_are_cut(ts: str) -> None:
    record = recorded(SimQuote.from_wire({"S": "A", "bp": 1, "ap": 2, "t": ts}))
    assert json.loads(encode_latest(record, ["A"]))["quotes"]["A"]["t"] == ts


def test_the_latest_quote_is_the_newest_by_its_time_and_unknown_symbols_are_left_out() -> None:
    record = recorded(SimQuote("A", 2.0, 3, ts_event_ns=9), SimQuote("A", 1.0, 3, ts_event_ns=8))
    quotes = json.loads(encode_latest(record, ["A", "B"]))["quotes"]
    assert {symbol: quote["bp"] for symbol, quote in quotes.items()} == {"A": 2}
