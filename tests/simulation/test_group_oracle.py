"""A check that cannot fail checks nothing: each is shown a group that misbehaves."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from mdservice.app import group
from mdservice.app.group import Member
from mdservice.app.service import Plan
from mdservice.feed.gap_repair.repair import GapRepair
from mdservice.model.kinds import QUOTES
from mdservice.redis_io import lease as scripts
from mdservice.redis_io.lease import RedisLease
from tests.simulation import redis_server
from tests.simulation.freezing import open_freezer
from tests.simulation.redis_server import SimulatedRedis
from tests.simulation.scheduling import run_seeded
from tests.simulation.world import simulate

SEED = 20_000_001
FENCED = 20_000_002
"""In which a leader without its lease still reaches Redis with prices."""


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def violations(*only: str, seed: int = SEED) -> str:
    return "\n".join(simulate(seed, only=only or ("none",), group=True).violations)


@pytest.mark.parametrize("only", ["none", "member_kill", "member_stop", "member_end", "way"])
def test_nothing_is_found_where_nothing_is_wrong(only: str) -> None:
    assert violations(only) == ""


def test_finds_a_leader_that_writes_after_another_has_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def end_none(_lease: RedisLease, _writers: Any, _run_id: str) -> None:
        pass

    monkeypatch.setattr(RedisLease, "_end", end_none)
    assert " was executed, though " in violations("way_to_redis", seed=FENCED)


def test_finds_a_lease_that_is_given_to_two(monkeypatch: pytest.MonkeyPatch) -> None:
    def claim(server: SimulatedRedis, own: bytes, lasts_ms: bytes, *others: bytes) -> list[Any]:
        server.forget_lease()
        return SimulatedRedis._claim(server, own, lasts_ms, *others)

    monkeypatch.setitem(redis_server._SCRIPTS, scripts._CLAIM, claim)
    monkeypatch.setattr(RedisLease, "look", _sees_none)
    assert " got the lease at " in violations()


async def _sees_none(_lease: RedisLease) -> None:
    await trio.lowlevel.checkpoint()


def test_finds_two_that_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    async def renew(lease: RedisLease) -> bool:
        await trio.lowlevel.checkpoint()
        return lease._leads

    async def remember(_lease: RedisLease, _wishes: bytes) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(RedisLease, "renew", renew)
    monkeypatch.setattr(RedisLease, "remember", remember)
    assert "several lead at once" in violations()


def test_finds_a_standby_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "LOOK_EVERY_S", 9.0)
    assert "no member leads, although" in violations("member_kill")


def test_finds_a_lease_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def keep(_lease: RedisLease) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(RedisLease, "release", keep)
    assert "has ended and kept the lease" in violations("member_end")


def test_finds_numbers_that_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    last_records = Plan.last_records

    async def read_and_forget(*asked: Any, **how: Any) -> dict[Any, Any]:
        await last_records(*asked, **how)
        return {}

    monkeypatch.setattr(Plan, "last_records", read_and_forget)
    assert " 1 after " in violations("member_kill")


def test_finds_a_lost_quote(monkeypatch: pytest.MonkeyPatch) -> None:
    add_live = GapRepair.add_live

    def lose_some(self: GapRepair, kind: Any, quotes: Any) -> None:
        add_live(self, kind, [quote for quote in quotes if quote.bid_size % 50 != 49])

    monkeypatch.setattr(GapRepair, "add_live", lose_some)
    assert "are missing" in violations()


def test_finds_a_quote_that_is_published_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    take = SimulatedRedis.take

    def twice(server: SimulatedRedis, *batch: Any) -> None:
        take(server, *batch)
        take(server, *batch)

    monkeypatch.setattr(SimulatedRedis, "take", twice)
    assert "published 2 times" in violations()


def test_finds_a_key_that_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = SimulatedRedis._execute

    def keep_some(server: SimulatedRedis, batch: Any) -> None:
        before = {name: server._keys.get(name) for name in ("price:AAPL",)}
        execute(server, batch)
        if batch.number % 5 == 0 and before["price:AAPL"] and QUOTES in batch.latest:
            server._keys["price:AAPL"] = before["price:AAPL"]

    monkeypatch.setattr(SimulatedRedis, "_execute", keep_some)
    found = violations()
    assert "the key holds" in found
    assert "the key of AAPL went back" in found


def test_finds_a_takeover_that_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Member, "_announce", lambda *_: None)
    assert "not with its takeover" in violations("member_kill")


def test_finds_a_standby_that_does_not_know_the_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stay_cold(_member: Member) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Member, "_stay_warm", stay_cold)
    assert "does not know the last price" in violations()


# What the simulation of a group stands on


def test_a_stopped_program_continues_where_it_was() -> None:
    async def run() -> tuple[list[float], list[float]]:
        stopped: list[float] = []
        other: list[float] = []

        async def count(into: list[float]) -> None:
            for _ in range(10):
                await trio.sleep(1)
                into.append(trio.current_time())

        async def program(task_status: Any) -> None:
            async with trio.open_nursery() as inner:
                task_status.started(trio.lowlevel.current_task())
                inner.start_soon(count, stopped)

        with open_freezer() as freezer:
            async with trio.open_nursery() as nursery:
                root = await nursery.start(program)
                nursery.start_soon(count, other)
                await trio.sleep(2.5)
                freezer.stop(root)
                await trio.sleep(4)
                freezer.resume(root)
        return stopped, other

    stopped, other = run_seeded(1, run)
    assert other == [float(second) for second in range(1, 11)]
    assert stopped == [1.0, 2.0, 6.5, *(6.5 + second for second in range(1, 8))]


@pytest.mark.pins
def test_trios_private_queue_is_as_it_was_left() -> None:
    async def run() -> None:
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        with open_freezer():
            assert type(runner.runq) is not deque
            await trio.lowlevel.checkpoint()
        assert type(runner.runq) is deque
        await trio.lowlevel.checkpoint()

    trio.run(run)
