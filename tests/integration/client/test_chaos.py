"""Everything at once, from seeds: connections cut, the server paused, garbage, steps, restarts."""

from __future__ import annotations

import random

import anyio
import pytest

import mdservice
from mdservice.client import intake
from mdservice.client import pubsub as silence
from mdservice.client.open import open_prices
from tests.integration.client.publisher import Publisher, on_both_loops, until

NAMES = [f"S{n}" for n in range(5)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(silence, "ANSWER_LIMIT_S", 0.2)
    monkeypatch.setattr(intake, "KEYS_AT_MOST_EVERY_S", 0.05)


async def disturb(publisher: Publisher, rng: random.Random, *, restarts: bool) -> None:
    what = rng.choice(["kill", "pause", "garbage", "nothing", "nothing"])
    if what == "kill":
        await anyio.to_thread.run_sync(publisher.kill_readers)
    elif what == "pause":
        publisher.server.stop_answering()
        await anyio.sleep(rng.uniform(0.0, 0.5))
        publisher.server.answer_again()
    elif what == "garbage":
        with publisher.server.client() as client:
            client.publish("price.updated", rng.randbytes(rng.randrange(200)))
            client.xadd("log", {"data": rng.randbytes(5)})
    elif restarts and rng.random() < 0.5:
        await publisher.close()
        publisher.restart_service()


async def write(publisher: Publisher, rng: random.Random, *, restarts: bool) -> None:
    for _ in range(25):
        for _ in range(rng.randrange(20)):
            await publisher.write(
                *rng.choices(NAMES, k=rng.randrange(1, 30)), step=rng.choice([1, 1, 3])
            )
        await disturb(publisher, rng, restarts=restarts)
        await anyio.sleep(rng.choice([0, 0, 0.05]))
    await publisher.write(*NAMES)


def check_order(seen: list[mdservice.Quote]) -> None:
    times: dict[str, int] = {}
    for quote in seen:
        assert quote.ts_event_ns > times.get(quote.symbol, 0)
        times[quote.symbol] = quote.ts_event_ns


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("loop", ["trio", "asyncio"])
@pytest.mark.parametrize("log", [None, "log"])
@pytest.mark.parametrize("restarts", [False, True])
def test_what_was_accepted_was_seen_or_is_counted(
    publisher: Publisher, loop: str, seed: int, log: str | None, restarts: bool
) -> None:
    @on_both_loops
    async def scene(publisher: Publisher) -> None:
        rng = random.Random(seed)
        seen: list[mdservice.Quote] = []
        await publisher.write(*NAMES)
        async with (
            open_prices(publisher.url, event_log=log) as prices,
            anyio.create_task_group() as tasks,
        ):

            async def read() -> None:
                async for quote in prices:
                    seen.append(quote)
                    if rng.random() < 0.01:
                        await anyio.sleep(0.01)

            tasks.start_soon(read)
            await write(publisher, rng, restarts=restarts)
            last = {quote.symbol: quote for quote in publisher.written}
            await until(lambda: prices.prices() == [last[name] for name in NAMES])
            await until(lambda: not prices.status().waiting)
            status = prices.status()
            tasks.cancel_scope.cancel()
        check_order(seen)
        assert {quote.symbol: quote for quote in seen} == last
        assert status.conflated == status.trimmed == 0
        if log:
            assert seen == publisher.written
        elif not restarts:
            accepted = sum(quote.seq - 1 for quote in last.values())
            assert len(seen) - len(NAMES) + status.missed == accepted

    scene(publisher, loop)
