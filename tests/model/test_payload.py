"""The JSON that readers of the keys and channels see."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.events import FeedStatus, encode_status
from mdservice.model.kinds import QUOTES, RecordDecoder
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.model.timestamps import EARLIEST_NS, LATEST_NS, format_ns
from tests.examples import examples

T_NS = 1_795_189_904_208_912_345
QUOTE = Quote("AAPL", 187.12, 187.15, 2, 3, T_NS, T_NS + 1, 1042)


def test_the_example_of_the_contract_byte_for_byte() -> None:
    assert encode_quote(QUOTE) == (
        b'{"symbol":"AAPL","price":187.135,"bid":187.12,"ask":187.15,'
        b'"bid_size":2,"ask_size":3,"timestamp":"2026-11-20T15:51:44.208912345Z","seq":1042}'
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bid": 0.1, "ask": 0.2}, b'"price":0.15,"bid":0.1,"ask":0.2,'),
        ({"ask": 0.0}, b'"price":187.12,"bid":187.12,"ask":0.0,'),
        ({"bid": 0.0}, b'"price":187.15,"bid":0.0,"ask":187.15,'),
        ({"bid": 0.0, "ask": 0.0}, b'"price":null,"bid":0.0,"ask":0.0,'),
        ({"bid": 187.2, "ask": 187.1}, b'"price":187.15,"bid":187.2,"ask":187.1,'),
        pytest.param(
            {"bid": 1e14, "ask": 0.00001},
            b'"price":50000000000000.000005,"bid":',
            id="more digits than a float holds",
        ),
        ({"bid_size": 0.5, "ask_size": 0}, b'"bid_size":0.5,"ask_size":0,'),
        ({"ts_event_ns": 0}, b'"timestamp":"1970-01-01T00:00:00.000000000Z"'),
        ({"symbol": "BRK.B"}, b'{"symbol":"BRK.B",'),
    ],
)
def test_fields_as_the_contract_has_them(changes: dict[str, object], expected: bytes) -> None:
    assert expected in encode_quote(attrs.evolve(QUOTE, **changes))


@examples(200)
@given(
    st.builds(
        Quote,
        symbol=st.text(min_size=1, max_size=64),
        bid=st.floats(0, 1e15, exclude_max=True),
        ask=st.floats(0, 1e15, exclude_max=True),
        bid_size=st.integers(0, 2**64) | st.floats(0, 1e18),
        ask_size=st.integers(0, 2**64) | st.floats(0, 1e18),
        ts_event_ns=st.integers(EARLIEST_NS, LATEST_NS),
        ts_recv_ns=st.just(0),
        seq=st.integers(1, 2**53),
    )
)
def test_any_quote_reads_back_as_it_was(quote: Quote) -> None:
    read = json.loads(encode_quote(quote), parse_float=Decimal)
    assert list(read) == [
        "symbol", "price", "bid", "ask", "bid_size", "ask_size", "timestamp", "seq",
    ]  # fmt: skip
    assert read["symbol"] == quote.symbol
    assert (float(read["bid"]), float(read["ask"])) == (quote.bid, quote.ask)
    assert (float(read["bid_size"]), float(read["ask_size"])) == (
        float(quote.bid_size),
        float(quote.ask_size),
    )
    assert (read["timestamp"], read["seq"]) == (format_ns(quote.ts_event_ns), quote.seq)
    price = None if read["price"] is None else Fraction(read["price"])
    assert price == (None if quote.price is None else Fraction(quote.price))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (
            FeedStatus("connected", T_NS, {"driver": "websockets"}),
            b'{"state":"connected","at":"2026-11-20T15:51:44.208912345Z","feed":"stocks","driver":"websockets"}',
        ),
        (
            FeedStatus("disconnected", T_NS),
            b'{"state":"disconnected","at":"2026-11-20T15:51:44.208912345Z","feed":"stocks"}',
        ),
        (
            FeedStatus("gap", 0, {"from": "A", "to": "B", "symbols": ["AAPL", "MSFT"]}),
            b'{"state":"gap","at":"1970-01-01T00:00:00.000000000Z","feed":"stocks","from":"A","to":"B","symbols":["AAPL","MSFT"]}',
        ),
    ],
)
def test_states_of_the_feed_byte_for_byte(status: FeedStatus, expected: bytes) -> None:
    assert encode_status(status) == expected


prices = st.floats(0, 1e9)
sizes = st.integers(0, 10**9) | st.floats(0, 1e9)
quotes = st.builds(
    Quote,
    symbol=st.sampled_from(["AAPL", "BRK.B", "BTC/USD"]),
    bid=prices,
    ask=prices,
    bid_size=sizes,
    ask_size=sizes,
    ts_event_ns=st.integers(0, 4 * 10**18),
    ts_recv_ns=st.integers(0, 4 * 10**18),
    seq=st.integers(1, 10**9),
)


@given(quotes)
def test_what_is_written_is_read_back(quote: Quote) -> None:
    assert QUOTES.decode(encode_quote(quote)) == attrs.evolve(quote, ts_recv_ns=quote.ts_event_ns)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"symbol":"A","bid":1,"ask":1,"bid_size":1,"ask_size":1,"timestamp":"now","seq":1}',
        (
            b'{"symbol":"A","bid":-1,"ask":1,"bid_size":1,"ask_size":1,'
            b'"timestamp":"2026-11-20T15:00:00Z","seq":1}'
        ),
        (
            b'{"symbol":"A","bid":"1","ask":1,"bid_size":1,"ask_size":1,'
            b'"timestamp":"2026-11-20T15:00:00Z","seq":1}'
        ),
    ],
)
def test_what_is_no_price_object_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        QUOTES.decode(payload)


def test_a_decoder_picks_symbols_and_counts_garbage() -> None:
    aapl = encode_quote(Quote("AAPL", 1.0, 2.0, 1, 1, 5, 5, 1))
    msft = encode_quote(Quote("MSFT", 1.0, 2.0, 1, 1, 5, 5, 1))
    decoder = RecordDecoder(QUOTES, ["AAPL"])
    assert decoder.decode_all([msft, aapl, b"{}", None, 7, aapl]) == [QUOTES.decode(aapl)] * 2
    assert decoder.errors == 3
    assert decoder.last_error is not None
    everything = RecordDecoder(QUOTES)
    assert [quote.symbol for quote in everything.decode_all([msft, aapl])] == ["MSFT", "AAPL"]
    assert everything.errors == 0


@pytest.mark.parametrize(
    "symbol", ["", "*", ".A", "A B", "A" * 33, "\u00c4", "../x\r\n", "A\n", "A\0", "\x1b[2J"]
)
def test_a_decoder_takes_no_symbol_that_is_none(symbol: str) -> None:
    payload = encode_quote(Quote(symbol, 1.0, 2.0, 1, 1, 5, 5, 1))
    decoder = RecordDecoder(QUOTES)
    assert decoder.decode(payload) is None
    assert decoder.errors == 1


@pytest.mark.parametrize("separator", ["T", "t", " "])
@pytest.mark.parametrize("fraction", ["208912345", "2089", "2089123456"])
def test_a_quote_that_was_read_has_its_time_in_one_form(separator: str, fraction: str) -> None:
    text = f"2026-11-20{separator}15:51:44.{fraction}Z"
    payload = b'{"symbol":"A","bid":1,"ask":2,"bid_size":1,"ask_size":1,"timestamp":"%b","seq":1}'
    for _ in range(2):  # the second is remembered from the first
        quote = QUOTES.build(QUOTES.parse(payload % text.encode()))
        assert quote.timestamp == format_ns(quote.ts_event_ns)
    later = attrs.evolve(quote, ts_event_ns=quote.ts_event_ns + 1)
    assert later.timestamp == format_ns(later.ts_event_ns)
