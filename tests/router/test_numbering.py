"""Numbers that go on after those of an earlier leader, for every kind that has some."""

from __future__ import annotations

from typing import Any

import pytest

from mdservice.model.kinds import BARS, ORDERBOOKS, QUOTES, STATUSES, TRADES, Kind
from mdservice.router.policies import make_sequencer
from tests.records import make_record

NOW_NS = 10**18
NUMBERED = [QUOTES, TRADES, BARS, STATUSES, ORDERBOOKS]


def records(kind: Kind[Any], *numbers: int) -> list[Any]:
    made = [make_record(kind, "AAPL", number, NOW_NS + number * 10**9) for number in numbers]
    for record in made:
        record.seq = 0
        if kind is ORDERBOOKS:
            record.whole = True
    return made


@pytest.mark.parametrize("kind", NUMBERED, ids=lambda kind: kind.channel)
@pytest.mark.parametrize("on", [False, True])
def test_numbers_go_on_only_where_asked(kind: Kind[Any], on: bool) -> None:
    sequencer = make_sequencer(kind)
    last = make_record(kind, "AAPL", 41, NOW_NS)
    last.seq = 41
    sequencer.start_from([last], resuming=True)
    if on:
        sequencer.number_on({"AAPL": 41})
    first = sequencer.route(records(kind, 1, 2), NOW_NS + 10**10, 10**9).accepted
    later = sequencer.route(records(kind, 3), NOW_NS + 10**10, 10**9).accepted
    assert [record.seq for record in (*first, *later)] == ([42, 43, 44] if on else [1, 2, 3])


@pytest.mark.parametrize("kind", [QUOTES, TRADES], ids=lambda kind: kind.channel)
def test_a_first_price_has_the_next_number(kind: Kind[Any]) -> None:
    sequencer = make_sequencer(kind)
    last = make_record(kind, "AAPL", 41, NOW_NS)
    last.seq = 41
    sequencer.start_from([last], resuming=False)
    sequencer.number_on({"AAPL": 41})
    asked = {"AAPL": NOW_NS}
    found = sequencer.route_first(records(kind, 1), asked, NOW_NS + 10**10, 10**9)
    assert [record.seq for record in found.accepted] == [42]
    after = sequencer.route(records(kind, 2), NOW_NS + 10**10, 10**9).accepted
    assert [record.seq for record in after] == [43]
