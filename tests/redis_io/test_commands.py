"""Packed commands, byte by byte, and against hiredis."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdservice.model.kinds import BARS, KINDS, NEWS, QUOTES, TRADES, Kind
from mdservice.publish.store import Events, Message, WriteBatch
from mdservice.redis_io.commands import BatchPacker, pack
from mdservice.redis_io.names import RedisNames
from tests.batches import write_batch

SYMBOLS = st.text("ABCXYZ./-_09", min_size=1, max_size=12)


def parsed(data: bytes) -> list[list[bytes]]:
    reader = hiredis.Reader(notEnoughData=None)
    reader.feed(data)
    commands = []
    while (command := reader.gets()) is not None:
        commands.append(command)
    return commands


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_pack_is_what_hiredis_packs(words: list[bytes]) -> None:
    assert pack(*words) == hiredis.pack_command(tuple(words))  # type: ignore[arg-type]


def make_packer(prefix: str = "") -> BatchPacker:
    return BatchPacker(
        price_ttl_s=300, event_log=None, event_log_maxlen=9, instance="me", prefix=prefix
    )


def test_keys_are_the_contracts() -> None:
    assert RedisNames().price_key("AAPL") == b"price:AAPL"
    assert RedisNames().writer_key("host-7") == b"mdservice:writer:host-7"


def test_a_batch_is_keys_then_messages_then_its_number() -> None:
    packer = BatchPacker(price_ttl_s=300, event_log="log", event_log_maxlen=9, instance="me")
    messages = [Message("price.updated", b"{1}", "A"), Message("feed.status", b"{2}")]
    packed = packer.batch(write_batch(12, {"A": b"{1}"}, messages))
    assert parsed(packed.data) == [
        [b"MULTI"],
        [b"SET", b"price:A", b"{1}", b"EX", b"300"],
        [b"PUBLISH", b"price.updated", b"{1}"],
        [b"XADD", b"log", b"MAXLEN", b"~", b"9", b"*", b"symbol", b"A", b"data", b"{1}"],
        [b"PUBLISH", b"feed.status", b"{2}"],
        [b"SET", b"mdservice:writer:me", b"12", b"EX", b"86400"],
        [b"EXEC"],
    ]
    assert packed.queued == 5


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("prefix", ["", "desk%d:"])
def test_each_kind_has_its_key_its_stream_and_its_channel(kind: Kind[Any], prefix: str) -> None:
    packer = make_packer(prefix)
    ids = ("77",) if kind.stream else ()
    latest = {kind: {"A": b"{1}"}} if kind.has_key else {}
    events = [Events(kind.event, [b"{1}"], kind, ["A"], ids)]
    commands = parsed(packer.batch(WriteBatch(1, latest, events)).data)
    front = prefix.encode()
    expected = [[b"PUBLISH", front + kind.event.encode(), b"{1}"]]
    if kind.has_key:
        ttl = b"%d" % (kind.ttl_s or 300)
        expected.insert(0, [b"SET", front + kind.key_prefix.encode() + b"A", b"{1}", b"EX", ttl])
    if kind is NEWS:
        limit = [b"MAXLEN", b"~", b"10000", b"*"]
        expected.append([b"XADD", front + b"news", *limit, b"id", b"77", b"data", b"{1}"])
    assert commands[1:-2] == expected


def test_removed_values_are_deleted_before_the_messages() -> None:
    gone = {TRADES: ["A", "B"]}
    latest = {TRADES: {"C": b"{3}"}}
    events = [Events(QUOTES.event, [b"{}"], QUOTES, ["A"])]
    packed = make_packer().batch(WriteBatch(1, latest, events, deleted=gone))
    assert parsed(packed.data)[1:-2] == [
        [b"SET", b"trade:C", b"{3}", b"EX", b"300"],
        [b"DEL", b"trade:A"],
        [b"DEL", b"trade:B"],
        [b"PUBLISH", b"price.updated", b"{}"],
    ]


def test_each_kind_in_a_batch_is_announced_by_its_own_marker() -> None:
    packer = make_packer()
    packer.marks_db = 3
    events = [
        Events(kind.event, [b"{}"] * count, kind, ["A"] * count)
        for kind, count in ((TRADES, 2), (BARS, 1), (TRADES, 1))
    ]
    batch = WriteBatch(1, {}, events)
    assert parsed(packer.batch(batch).data)[1:4] == [
        [b"PUBLISH", b"mdservice.batch", b"me 3 0 0"],
        [b"PUBLISH", b"mdservice.batch.trades", b"me 3 3 1"],
        [b"PUBLISH", b"mdservice.batch.bars", b"me 3 1 1"],
    ]
    packer.unmarked = frozenset([TRADES])
    assert b"mdservice.batch.trades" not in packer.batch(batch).data
    assert b"mdservice.batch.bars" in packer.batch(batch).data


def test_markers_count_the_batches_of_each_kind_and_a_repeated_batch_once() -> None:
    packer = make_packer()
    packer.marks_db = 0

    def marks(batch: WriteBatch) -> dict[bytes, bytes]:
        commands = parsed(packer.batch(batch).data)
        found = [command[1:] for command in commands if command[:1] == [b"PUBLISH"]]
        return {name: word for name, word in found if name.startswith(b"mdservice.batch")}

    quotes = [Events(QUOTES.event, [b"{}"], QUOTES, ["A"])]
    trades = [Events(TRADES.event, [b"{}"], TRADES, ["A"])]
    assert marks(WriteBatch(1, {}, quotes)) == {b"mdservice.batch": b"me 0 1 1"}
    assert marks(WriteBatch(2, {}, quotes)) == {b"mdservice.batch": b"me 0 1 2"}
    assert marks(WriteBatch(2, {}, quotes)) == {b"mdservice.batch": b"me 0 1 2"}
    both = {b"mdservice.batch": b"me 0 0 2", b"mdservice.batch.trades": b"me 0 1 1"}
    assert marks(WriteBatch(3, {}, trades)) == both
    packer.marks_all = True
    idle = {b"mdservice.batch": b"me 0 1 3", b"mdservice.batch.trades": b"me 0 0 1"}
    assert marks(WriteBatch(4, {}, quotes)) == idle
    assert marks(WriteBatch(5, {}, quotes)) == {b"mdservice.batch": b"me 0 1 4"}
    restored = marks(WriteBatch(5, {}, (), restored=True))
    assert len(restored) == len(KINDS)
    assert restored[b"mdservice.batch.trades"] == b"me 0 0 1 restored"
    assert [command.split(b"\r\n")[-2] for command in packer.idle_markers()] == [
        b"me 0 0 4",
        b"me 0 0 1",
    ]


@given(
    log=st.sampled_from([None, "log", "100%d %b", "mdservice:ev\u00e9nements"]),
    prices=st.dictionaries(SYMBOLS, st.binary(max_size=50), max_size=4),
    events=st.lists(st.tuples(SYMBOLS | st.none(), st.binary(max_size=50)), max_size=5),
)
def test_any_batch_reads_back_as_it_was(
    log: str | None, prices: dict[str, bytes], events: list[tuple[str | None, bytes]]
) -> None:
    packer = BatchPacker(price_ttl_s=1, event_log=log, event_log_maxlen=5, instance="i%d")
    messages = [Message("price.updated", payload, symbol) for symbol, payload in events]
    packed = packer.batch(write_batch(1, prices, messages))
    expected = [[b"MULTI"]]
    for symbol, payload in prices.items():
        expected.append([b"SET", b"price:" + symbol.encode(), payload, b"EX", b"1"])
    for symbol_, payload in events:
        expected.append([b"PUBLISH", b"price.updated", payload])
        if log is not None and symbol_ is not None:
            head = [b"XADD", log.encode(), b"MAXLEN", b"~", b"5", b"*"]
            expected.append([*head, b"symbol", symbol_.encode(), b"data", payload])
    expected += [[b"SET", b"mdservice:writer:i%d", b"1", b"EX", b"86400"], [b"EXEC"]]
    assert parsed(packed.data) == expected
    assert packed.queued == len(expected) - 2
