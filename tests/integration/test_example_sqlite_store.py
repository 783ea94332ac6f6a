"""The example of another store: one step or nothing, each batch once, in order."""

from __future__ import annotations

import importlib.util
import json
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

import mdservice
from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import QUOTES
from mdservice.publish.store import Message, WriteBatch
from tests.batches import write_batch
from tests.integration.conftest import patient

FILE = Path(mdservice.__file__).parent.parent / "docs" / "examples" / "sqlite_store.py"
LIMIT_S = 60.0


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("sqlite_store_example", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LOCKED_S", 0.05)
    return module


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            await scene()

    for backend in ("trio", "asyncio"):
        anyio.run(main, backend=backend)


def batch(number: int, *symbols: str, age_s: int = 0) -> WriteBatch:
    prices = dict.fromkeys(symbols, b"%d" % number)
    messages = [Message("price.updated", b"%d" % number, symbol) for symbol in symbols]
    return write_batch(number, prices, messages, dict.fromkeys(symbols, age_s) if age_s else {})


def events(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as file:
        return [row[0] for row in file.execute("SELECT payload FROM events ORDER BY id")]


def test_a_batch_is_written_whole_and_survives_a_new_connection(
    example: Any, tmp_path: Path
) -> None:
    async def scene() -> None:
        path = tmp_path / f"{anyio.get_current_task().id}.db"
        store = example.SqliteStore(str(path), "one")
        with pytest.raises(StoreUnavailable, match="connect first"):
            await store.ping()
        await store.connect()
        await store.ping()
        assert await store.last_batch() == 0
        await store.write(batch(1, "A", "B"))
        await store.write(batch(2, "A"))
        await store.connect()
        assert await store.last_batch() == 2
        assert await store.read_latest(QUOTES, ["A", "B", "C"]) == {"A": b"2", "B": b"1"}
        assert events(path) == ["1", "1", "2"]
        await store.write(batch(3, "B", age_s=example.PRICE_TTL_S))
        assert await store.read_latest(QUOTES, ["B"]) == {}, "its time is over"
        await store.aclose()
        await store.aclose()

    run(scene)


def test_a_refused_batch_leaves_nothing_and_may_be_tried_again(
    example: Any, tmp_path: Path
) -> None:
    async def scene() -> None:
        path = tmp_path / f"{anyio.get_current_task().id}.db"
        store = example.SqliteStore(str(path), "one")
        await store.connect()
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreRefused, match="locked"):
                await store.write(batch(1, "A"))
            with pytest.raises(StoreRefused, match="locked"):
                await store.ping()
        await store.write(batch(1, "A"))
        assert events(path) == ["1"]
        await store.aclose()

    run(scene)


def test_a_removed_value_is_gone(example: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        store = example.SqliteStore(str(tmp_path / f"{anyio.get_current_task().id}.db"), "one")
        await store.connect()
        await store.write(batch(1, "A", "B"))
        await store.write(WriteBatch(2, {}, (), deleted={QUOTES: ["A", "NEVER"]}))
        assert list(await store.read_latest(QUOTES, ["A", "B"])) == ["B"]
        await store.aclose()

    run(scene)


def test_a_file_that_cannot_be_opened_is_unavailable(example: Any, tmp_path: Path) -> None:
    async def scene() -> None:
        store = example.SqliteStore(str(tmp_path / "nowhere" / "prices.db"), "one")
        with pytest.raises(StoreUnavailable, match="nowhere"):
            await store.connect()

    run(scene)


def test_the_oldest_events_give_way(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "EVENTS_KEPT", 3)

    async def scene() -> None:
        path = tmp_path / f"{anyio.get_current_task().id}.db"
        store = example.SqliteStore(str(path), "one")
        await store.connect()
        for number in range(1, 6):
            await store.write(batch(number, "A"))
        await store.aclose()
        assert events(path) == ["3", "4", "5"]

    run(scene)


def test_a_program_writes_every_event_once_in_order_also_past_a_lock(stage: Any) -> None:
    program = stage.example("sqlite_store.py", "prices.db", "AAPL", "MSFT")
    path = program.folder / "prices.db"
    stage.eventually(lambda: "running" in program.stdout, within=20, what=lambda: program.said)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        stage.eventually(lambda: "degraded" in program.stdout, what=lambda: program.said)
    at = program.stdout.count("running")
    stage.eventually(lambda: program.stdout.count("running") > at, what=lambda: program.said)
    program.end(signal.SIGINT, within=10)
    with closing(sqlite3.connect(path)) as file:
        rows = file.execute("SELECT channel, payload FROM events ORDER BY id").fetchall()
    seen: dict[str, list[int]] = {}
    for event in (json.loads(payload) for channel, payload in rows if channel == "price.updated"):
        seen.setdefault(event["symbol"], []).append(event["seq"])
    assert seen.keys() == {"AAPL", "MSFT"}
    for numbers in seen.values():
        assert numbers == list(range(1, len(numbers) + 1))
