"""What is read from a store at the start, before the writer has it."""

from __future__ import annotations

from collections import deque
from typing import Any

import anyio
import attrs
import pytest

from mdservice.errors import StoreRefused
from mdservice.model.kinds import KINDS, NEWS, QUOTES, TRADES, Kind
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.publish.store import READ_LIMIT_S, WriteBatch, read_last_records
from mdservice.testing import MemoryPriceStore, StoreFault, VirtualClock
from tests.batches import write_batch
from tests.records import make_record

NOW_NS = 1_700_000_000_000_000_000
AAPL = Quote("AAPL", 1, 2, 3, 4, NOW_NS, NOW_NS, 7)
MSFT = attrs.evolve(AAPL, symbol="MSFT", ts_event_ns=NOW_NS - 1)


async def store_with(prices: dict[str, bytes]) -> MemoryPriceStore:
    store = MemoryPriceStore(clock=VirtualClock(), price_ttl_s=300)
    await store.connect()
    await store.write(write_batch(1, prices))
    store.drop_connection()
    return store


async def read(store: MemoryPriceStore, *symbols: str, latest_ns: int = NOW_NS) -> list[str]:
    found = await read_last_records(store, {QUOTES: symbols}, latest_ns)
    return [record.symbol for record in found.get(QUOTES, ())]


async def test_the_records_of_the_symbols_are_read(autojump_clock: Any) -> None:
    store = await store_with({"AAPL": encode_quote(AAPL), "MSFT": encode_quote(MSFT)})
    assert await read(store, "AAPL", "MSFT", "GONE") == ["AAPL", "MSFT"]
    assert await read(store, "MSFT") == ["MSFT"]


async def test_the_latest_time_is_allowed_and_nothing_after_it(autojump_clock: Any) -> None:
    store = await store_with({"AAPL": encode_quote(AAPL), "MSFT": encode_quote(MSFT)})
    assert await read(store, "AAPL", "MSFT", latest_ns=NOW_NS - 1) == ["MSFT"]


async def test_a_key_with_another_symbols_record_is_left_out(autojump_clock: Any) -> None:
    store = await store_with({"AAPL": encode_quote(MSFT), "MSFT": encode_quote(MSFT), "X": b"{"})
    assert await read(store, "AAPL", "MSFT", "X") == ["MSFT"]


async def test_the_newest_articles_are_read_from_their_stream(autojump_clock: Any) -> None:
    store = MemoryPriceStore(clock=VirtualClock())
    articles = [make_record(NEWS, number=number) for number in (1, 2, 3)]
    late = make_record(NEWS, number=4, at_ns=NOW_NS + 1)
    store.streams["news"] = deque((str(one.id), NEWS.encode(one)) for one in (*articles, late))
    store.streams["news"].appendleft(("0", b"{"))
    assert await read_last_records(store, {NEWS: ("MSFT",)}, NOW_NS) == {NEWS: articles}
    assert await read_last_records(store, {NEWS: ("*",)}, NOW_NS) == {NEWS: articles}
    assert await read_last_records(store, {NEWS: ()}, NOW_NS) == {}


async def test_every_kind_is_read_from_its_own_keys(autojump_clock: Any) -> None:
    store = MemoryPriceStore(clock=VirtualClock())
    await store.connect()
    records = {kind: make_record(kind) for kind in KINDS if kind.has_key}
    latest = {kind: {"AAPL": kind.encode(record)} for kind, record in records.items()}
    await store.write(WriteBatch(1, latest, ()))
    wanted = dict.fromkeys(records, ("AAPL", "MSFT"))
    assert await read_last_records(store, wanted, NOW_NS) == {
        kind: [record] for kind, record in records.items()
    }


async def test_for_star_alone_the_store_is_not_asked(autojump_clock: Any) -> None:
    store = await store_with({"*": encode_quote(attrs.evolve(AAPL, symbol="*"))})
    assert await read(store, "*") == []
    assert not store.connected


async def test_without_a_store_nothing_is_known(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = await store_with({"AAPL": encode_quote(AAPL)})
    store.script.append(StoreFault.REFUSE_CONNECT)
    assert await read(store, "AAPL") == []
    assert "last_prices_not_read" in caplog.text


async def test_a_store_that_does_not_answer_is_left_after_the_limit(autojump_clock: Any) -> None:
    class Silent(MemoryPriceStore):
        async def connect(self) -> None:
            await anyio.sleep_forever()

    assert await read(Silent(), "AAPL") == []
    assert anyio.current_time() == READ_LIMIT_S


async def test_a_kind_that_the_server_refuses_to_read_costs_only_itself(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Partly(MemoryPriceStore):
        async def read_latest(self, kind: Kind[Any], symbols: Any) -> dict[str, bytes]:
            if kind is TRADES:
                raise StoreRefused("NOPERM no access to the key trade:AAPL")
            return await super().read_latest(kind, symbols)

        async def read_newest(self, stream: Any, count: int) -> list[bytes]:
            raise StoreRefused("WRONGTYPE the key news holds no stream")

    store = Partly(clock=VirtualClock())
    await store.connect()
    await store.write(write_batch(1, {"AAPL": encode_quote(AAPL)}))
    wanted = {TRADES: ("AAPL",), QUOTES: ("AAPL",), NEWS: ("*",)}
    found = await read_last_records(store, wanted, NOW_NS)
    assert list(found[QUOTES]) == [AAPL]
    assert not found[TRADES]
    assert not found[NEWS]
    assert "NOPERM" in caplog.text
    assert "WRONGTYPE" in caplog.text


async def test_kinds_that_were_read_in_time_are_kept(autojump_clock: Any) -> None:
    class Slow(MemoryPriceStore):
        async def read_newest(self, stream: Any, count: int) -> list[bytes]:
            await anyio.sleep_forever()
            return []

    store = Slow(clock=VirtualClock())
    await store.connect()
    await store.write(write_batch(1, {"AAPL": encode_quote(AAPL)}))
    found = await read_last_records(store, {QUOTES: ("AAPL",), NEWS: ("*",)}, NOW_NS)
    assert list(found[QUOTES]) == [AAPL]
    assert anyio.current_time() == READ_LIMIT_S
