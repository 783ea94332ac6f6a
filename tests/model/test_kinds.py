"""The descriptions of the kinds: the contract's names, and conversions that agree."""

from __future__ import annotations

from typing import Any

import pytest

from mdservice.model.kinds import ALL_KINDS, KINDS, QUOTES, Kind
from mdservice.model.quote import Quote
from tests.records import make_record

NOW_NS = 1_780_000_000_123_456_789
RECORDS: dict[Kind[Any], Any] = {QUOTES: Quote("AAPL", 187.12, 187.15, 2, 3, NOW_NS, NOW_NS, 7)}


def test_quotes_have_the_names_of_the_contract() -> None:
    assert (QUOTES.channel, QUOTES.key_prefix, QUOTES.event) == (
        "quotes",
        "price:",
        "price.updated",
    )


def test_no_two_kinds_share_a_name() -> None:
    for name in ("channel", "key_prefix", "event", "marker"):
        assert len({getattr(kind, name) for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_what_is_encoded_decodes_to_the_same_record(kind: Kind[Any]) -> None:
    record = RECORDS[kind]
    decoded = kind.decode(kind.encode(record))
    assert kind.identity(decoded) == kind.identity(record)
    assert (decoded.symbol, decoded.ts_event_ns, decoded.seq) == ("AAPL", NOW_NS, 7)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"symbol":"AAPL"}', b"\xff"])
def test_what_is_no_record_is_an_error(kind: Kind[Any], payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        kind.decode(payload)


@pytest.mark.parametrize("kind", ALL_KINDS, ids=repr)
def test_a_record_that_may_be_late_has_a_mark_that_is_not_written(kind: Kind[Any]) -> None:
    record = make_record(kind)
    assert hasattr(record, "newest") == kind.may_be_late
    if kind.may_be_late:
        written = kind.encode(record)
        record.newest = False
        assert kind.encode(record) == written
        assert record == make_record(kind), "a repeat is one whatever its place"
