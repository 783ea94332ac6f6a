"""Ids of a log's entries, and whether a log was cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.client.event_log import START, Chunk, EntryId, parse_entry_id
from mdservice.errors import ConfigurationError

ids = st.builds(EntryId, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))


@given(ids)
def test_an_id_is_read_back(entry: EntryId) -> None:
    assert parse_entry_id(str(entry)) == entry
    assert entry.encode() == str(entry).encode()


def test_ids_are_ordered_as_numbers_not_as_text() -> None:
    assert START < EntryId(9, 10) < EntryId(10, 9) < EntryId(10, 10)
    assert parse_entry_id(" 7 ") == EntryId(7, 0)


@pytest.mark.parametrize("text", ["", "$", "-", "1-", "-1", "1-2-3", "٣", "1" * 21, None, 5])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="after"):
        parse_entry_id(text)


def test_a_log_that_no_longer_reaches_back_was_cut() -> None:
    assert Chunk([], EntryId(5, 0)).cut_after(EntryId(4, 0))
    assert not Chunk([], EntryId(5, 0)).cut_after(EntryId(5, 0))
    assert not Chunk([], EntryId(5, 0)).cut_after(START)
    assert not Chunk([], None).cut_after(EntryId(5, 0))
