"""What a replay sends: what the recorded service accepted, and nothing else."""

from contextlib import closing

import pytest

from mdservice.errors import JournalError
from mdservice.journal.decisions import Decisions, recorded_topics
from mdservice.journal.replay import groups_of
from mdservice.journal.segments import read, segments_of
from mdservice.model.feeds import STOCKS, Topic
from tests.journal.test_replay import BEGIN_NS, SECOND_NS, journal_at, quote, trade


def decided(folder, feed=STOCKS):
    """Each step as the values that tell its records apart, and whether its frames go as they came."""
    entries = list(read(segments_of(folder)))
    with closing(Decisions(feed)) as decisions:
        decisions.as_sent_in = "json"
        steps = [step for entry in entries if (step := decisions.take(entry)) is not None]
    assert sent(decided_together(entries, feed)) == sent(steps)
    return [
        ([number(record) for batch in step.batches for record in batch.records], bool(step.frames))
        for step in steps
    ]


def decided_together(entries, feed=STOCKS):
    """The steps where entries are taken in groups, as by a replay that does not keep the time."""
    with closing(Decisions(feed)) as decisions:
        decisions.as_sent_in = "json"
        groups = groups_of(entries)
        return [step for group in groups for step in decisions.take_group(group)]


def sent(steps):
    """What a client gets, without the frames that it is in."""
    return [
        identity(record) for step in steps for batch in step.batches for record in batch.records
    ]


def identity(record):
    return type(record), record.symbol, record.ts_event_ns


def number(record):
    return (record.ts_event_ns - BEGIN_NS) // SECOND_NS


def rest(writer, name, messages, kind="quotes", **fields):
    writer.event(name, feed="stocks", kind=kind, messages=messages, **fields)


def backfill(writer, messages, kind="quotes"):
    at_ns = BEGIN_NS + writer.second * SECOND_NS
    rest(writer, "backfill", messages, kind, until_ns=at_ns, complete=["AAPL"])


def reconnect(writer):
    topics = {"quotes": ["AAPL", "MSFT"], "trades": ["AAPL"]}
    writer.event("disconnected", feed="stocks", reason="cut", topics=topics)
    writer.event("connecting", feed="stocks", driver="websockets")
    writer.event("login", feed="stocks", encoding="json")
    for kind in ("quotes", "trades"):
        writer.event("hold", feed="stocks", kind=kind)
    writer.event("subscribe", feed="stocks", topics=topics)
    writer.frame([{"T": "subscription", **topics}])


def test_records_that_waited_for_a_repair_come_behind_what_was_missed(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1)])
        reconnect(writer)
        writer.frame([quote("AAPL", 4), trade("AAPL", 4)])
        backfill(writer, [quote("AAPL", 1), quote("AAPL", 2), quote("AAPL", 3)])
        backfill(writer, [], "trades")
        writer.frame([quote("AAPL", 5)])
    assert decided(tmp_path) == [([1], True), ([2, 3, 4], False), ([4], False), ([5], True)]


def test_corrections_wait_with_the_trades_that_they_are_about(tmp_path):
    correction = {"T": "c", "S": "AAPL", "oi": 4, "op": 9, "os": 1, "ci": 9, "cp": 8, "cs": 1}
    with journal_at(tmp_path) as writer:
        writer.frame([trade("AAPL", 1)])
        reconnect(writer)
        writer.frame([trade("AAPL", 4), {**correction, "t": quote("AAPL", 6)["t"]}])
        backfill(writer, [trade("AAPL", 3)], "trades")
    assert decided(tmp_path) == [([1], True), ([3, 4, 6], False)]


def test_what_the_stream_repeats_of_a_repair_is_not_sent_twice(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1)])
        reconnect(writer)
        backfill(writer, [quote("AAPL", 2), quote("AAPL", 3)])
        writer.frame([quote("AAPL", 2), quote("AAPL", 3), quote("AAPL", 4)])
    assert decided(tmp_path) == [([1], True), ([2, 3], False), ([4], False)]


def test_a_first_price_comes_at_its_place_and_only_if_it_was_accepted(tmp_path):
    asked = {"asked_ns": {"AAPL": BEGIN_NS, "MSFT": BEGIN_NS}}
    with journal_at(tmp_path) as writer:
        writer.second = 5
        writer.frame([quote("MSFT", 3)])
        rest(writer, "first", [quote("AAPL", 2), quote("MSFT", 4)], **asked)
        writer.frame([quote("AAPL", 2), quote("AAPL", 3)])
    assert decided(tmp_path) == [([3], True), ([2], False), ([3], False)]


def test_a_repeat_of_the_feed_goes_as_it_came(tmp_path):
    """The service refuses it again, and counts it."""
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1)])
        writer.frame([quote("AAPL", 1), quote("AAPL", 2)])
    assert decided(tmp_path) == [([1], True), ([1, 2], True)]


def test_a_record_from_the_future_of_then_is_not_sent(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1), quote("AAPL", 500)])
    assert decided(tmp_path) == [([1], False)]


def test_frames_in_a_row_are_one_step_where_the_time_is_not_kept(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.event("subscribe", feed="stocks", topics={"quotes": ["AAPL"]})
        for second in range(1, 6):
            writer.frame([quote("AAPL", second)])
    (step,) = decided_together(list(read(segments_of(tmp_path))))
    assert len(step.frames) == 5
    assert [number(record) for batch in step.batches for record in batch.records] == [*range(1, 6)]


def test_a_record_that_is_from_the_future_only_for_the_first_of_a_group_is_sent(tmp_path):
    """The service has taken it, a second later: a group has more than one time."""
    with journal_at(tmp_path) as writer:
        writer.event("subscribe", feed="stocks", topics={"quotes": ["AAPL"]})
        writer.frame([quote("AAPL", 1)])
        writer.second += 2
        writer.frame([quote("AAPL", 61)])
        writer.frame([quote("AAPL", 63)])
        writer.frame([quote("AAPL", 62)])
    assert decided(tmp_path) == [([1], True), ([61], True), ([62], True)]


def test_what_follows_a_control_message_is_not_decided_with_what_precedes_it(tmp_path):
    """It may change what is followed, and a group has only one state of that."""
    topics = {"quotes": ["AAPL", "NVDA"]}
    with journal_at(tmp_path) as writer:
        writer.frame([quote("NVDA", 1), quote("AAPL", 1)])
        writer.event("subscribe", feed="stocks", topics=topics)
        writer.frame([quote("AAPL", 2)])
        writer.frame([{"T": "subscription", **topics}])
        writer.frame([quote("NVDA", 3)])
        writer.frame([{"T": "error", "code": 407, "msg": "slow client"}])
        writer.frame([quote("NVDA", 4)])
    decided(tmp_path)


def test_what_was_not_subscribed_is_not_sent(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("NVDA", 1), quote("AAPL", 1)])
        writer.event("subscribe", feed="stocks", topics={"quotes": ["NVDA"]})
        writer.frame([quote("NVDA", 2)])
        writer.event("unsubscribed", feed="stocks", topics={"quotes": ["NVDA"]})
        writer.frame([quote("NVDA", 3)])
    assert decided(tmp_path) == [([1], False), ([2], True)]


def test_each_run_of_the_service_begins_with_nothing(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 5)])
    with journal_at(tmp_path, number=2) as writer:
        writer.frame([quote("AAPL", 4)])
    assert decided(tmp_path) == [([5], True), ([4], True)]


def test_messages_that_cannot_be_read_go_as_they_came(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([{**quote("AAPL", 1), "bp": "much"}])
        writer.frame("no array")
    assert decided(tmp_path) == [([], True), ([], True)]


@pytest.mark.parametrize("as_sent_in", [None, "json"])
def test_records_that_are_sent_anew_keep_every_field(tmp_path, as_sent_in):
    with journal_at(tmp_path) as writer:
        writer.frame([{**quote("AAPL", 1), "odd": 7}, quote("NVDA", 1)])
    with closing(Decisions(STOCKS)) as decisions:
        decisions.as_sent_in = as_sent_in
        steps = [decisions.take(entry) for entry in read(segments_of(tmp_path))]
    (step,) = [each for each in steps if each is not None]
    assert b'"odd":7' in step.batches[0].records[0].wire


def test_the_recorded_topics_are_those_of_all_times(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.event("unsubscribed", feed="stocks", topics={"quotes": ["AAPL"]})
        writer.event("subscribe", feed="crypto", topics={"quotes": ["BTC/USD"]})
    assert recorded_topics(read(segments_of(tmp_path), frames=False)) == {
        "stocks": {Topic("quotes", "AAPL"), Topic("quotes", "MSFT"), Topic("trades", "AAPL")},
        "crypto": {Topic("quotes", "BTC/USD")},
    }


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("open", {"topics": {"quotes": ["AAPL"]}}),
        ("open", {"encoding": "json", "topics": ["quotes"]}),
        ("open", {"encoding": "json", "topics": {"quotes": 7}}),
        ("hold", {"kind": "tips"}),
        ("first", {"kind": "quotes", "messages": []}),
        ("backfill", {"kind": "quotes", "messages": []}),
        ("late", {"kind": "quotes", "messages": [], "unknown": 7, "from_ns": 0, "to_ns": 1}),
    ],
)
def test_an_event_that_the_service_does_not_write_is_a_reason(tmp_path, name, fields):
    with journal_at(tmp_path) as writer:
        writer.event(name, feed="stocks", **fields)
    with pytest.raises(JournalError):
        decided(tmp_path)
