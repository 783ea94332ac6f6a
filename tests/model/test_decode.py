"""A price object that was written is the quote that it was."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.payload import QuoteDecoder, decode_quote, encode_quote
from mdservice.model.quote import Quote

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
    assert decode_quote(encode_quote(quote)) == attrs.evolve(quote, ts_recv_ns=quote.ts_event_ns)


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
        decode_quote(payload)


def test_a_decoder_picks_symbols_and_counts_garbage() -> None:
    aapl = encode_quote(Quote("AAPL", 1.0, 2.0, 1, 1, 5, 5, 1))
    msft = encode_quote(Quote("MSFT", 1.0, 2.0, 1, 1, 5, 5, 1))
    decoder = QuoteDecoder(["AAPL"])
    assert decoder.decode_all([msft, aapl, b"{}", None, 7, aapl]) == [decode_quote(aapl)] * 2
    assert decoder.errors == 3
    assert decoder.last_error is not None
    everything = QuoteDecoder()
    assert [quote.symbol for quote in everything.decode_all([msft, aapl])] == ["MSFT", "AAPL"]
    assert everything.errors == 0


@pytest.mark.parametrize(
    "symbol", ["", "*", ".A", "A B", "A" * 33, "\u00c4", "../x\r\n", "A\n", "A\0", "\x1b[2J"]
)
def test_a_decoder_takes_no_symbol_that_is_none(symbol: str) -> None:
    payload = encode_quote(Quote(symbol, 1.0, 2.0, 1, 1, 5, 5, 1))
    decoder = QuoteDecoder()
    assert decoder.decode(payload) is None
    assert decoder.errors == 1
