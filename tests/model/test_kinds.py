"""The descriptions of the kinds: the contract's names, and conversions that agree."""

from __future__ import annotations

from typing import Any

import pytest

from mdservice.errors import InvalidChannel
from mdservice.model.feeds import kinds_of
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    KINDS,
    NEWS,
    QUOTES,
    TRADES,
    Kind,
    RecordDecoder,
)
from tests.records import make_record

NOW_NS = 1_780_000_000_123_456_789
DAY_S = 86_400


@pytest.mark.parametrize(
    ("channel", "key_prefix", "event", "ttl_s"),
    [
        ("quotes", "price:", "price.updated", None),
        ("trades", "trade:", "trade.updated", None),
        ("corrections", "", "trade.corrected", None),
        ("cancelErrors", "", "trade.canceled", None),
        ("bars", "bar:", "bar.updated", DAY_S),
        ("dailyBars", "daily_bar:", "daily_bar.updated", 5 * DAY_S),
        ("statuses", "trading_status:", "trading_status.updated", DAY_S),
        ("lulds", "luld:", "luld.updated", DAY_S),
        ("imbalances", "imbalance:", "imbalance.updated", None),
        ("orderbooks", "orderbook:", "orderbook.updated", None),
        ("news", "", "news.published", None),
    ],
)
def test_a_kind_has_the_names_of_the_contract(
    channel: str, key_prefix: str, event: str, ttl_s: int | None
) -> None:
    (kind,) = (kind for kind in KINDS if kind.channel == channel)
    assert (kind.key_prefix, kind.event, kind.ttl_s) == (key_prefix, event, ttl_s)


def test_no_two_kinds_share_a_name() -> None:
    for name in ("channel", "event", "marker"):
        assert len({getattr(kind, name) for kind in KINDS}) == len(KINDS)
    prefixes = [kind.key_prefix for kind in KINDS if kind.has_key]
    assert len(set(prefixes)) == len(prefixes)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_what_is_encoded_decodes_to_the_same_record(kind: Kind[Any]) -> None:
    record = make_record(kind, number=7, at_ns=NOW_NS)
    decoded = kind.decode(kind.encode(record))
    assert decoded == record
    assert kind.identity(decoded) == kind.identity(record)
    assert decoded.ts_event_ns == NOW_NS
    if kind is DAILY_BARS:
        assert decoded.daily


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize(("symbols", "selected"), [((), 2), (("MSFT", "X"), 1), (("X",), 0)])
def test_a_decoder_selects_the_records_of_its_symbols(
    kind: Kind[Any], symbols: tuple[str, ...], selected: int
) -> None:
    records = [make_record(kind, "AAPL", 1), make_record(kind, "MSFT", 2)]
    decoder = RecordDecoder.of(kind, symbols)
    payloads: list[object] = [kind.encode(record) for record in records]
    assert decoder.decode_all([*payloads, b"{", None]) == records[2 - selected :]
    assert decoder.errors == 2
    assert kind.of_symbols(records, frozenset(symbols)) == (
        records[1:] if "MSFT" in symbols else []
    )


@pytest.mark.parametrize("written", ["BTCUSD", "BTC/USD"])
@pytest.mark.parametrize("wanted", ["BTCUSD", "BTC/USD"])
def test_news_of_a_pair_is_found_with_and_without_its_slash(written: str, wanted: str) -> None:
    articles = [make_record(NEWS, "AAPL", 1), make_record(NEWS, written, 2)]
    payloads = [NEWS.encode(article) for article in articles]
    assert NEWS.of_symbols(articles, frozenset([wanted])) == articles[1:]
    found = RecordDecoder.of(NEWS, [wanted]).decode_all(payloads)
    assert [NEWS.encode(article) for article in found] == payloads[1:]


@pytest.mark.parametrize(
    ("channels", "kinds"),
    [
        ("quotes", [QUOTES]),
        (["trades"], [TRADES, CORRECTIONS, CANCELS]),
        (["updatedBars"], [BARS]),
        (["bars", "updatedBars", "dailyBars"], [BARS, DAILY_BARS]),
        ("news, quotes", [QUOTES, NEWS]),
        ([], []),
    ],
)
def test_channels_bring_kinds(channels: Any, kinds: list[Kind[Any]]) -> None:
    assert kinds_of(channels) == tuple(kinds)


@pytest.mark.parametrize("channel", ["tardes", "corrections", "", "*"])
def test_a_channel_that_cannot_be_read_is_an_error(channel: str) -> None:
    with pytest.raises(InvalidChannel):
        kinds_of(["quotes", channel])


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"symbol":"AAPL"}', b"\xff"])
def test_what_is_no_record_is_an_error(kind: Kind[Any], payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        kind.decode(payload)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_record_that_may_be_late_has_a_mark_that_is_not_written(kind: Kind[Any]) -> None:
    record = make_record(kind)
    assert hasattr(record, "newest") == kind.may_be_late
    if kind.may_be_late:
        written = kind.encode(record)
        record.newest = False
        assert kind.encode(record) == written
        assert record == make_record(kind), "a repeat is one whatever its place"
