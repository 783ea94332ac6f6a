"""Every kind at once, from seeds: connections cut, the server paused, late trades, corrections, restarts."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import anyio
import attrs
import pytest

import mdservice
from mdservice.client import intake
from mdservice.client import pubsub as silence
from mdservice.model.feeds import CHANNELS
from mdservice.model.kinds import CANCELS, CORRECTIONS, KINDS, NEWS, TRADES, Kind
from mdservice.model.trade import Cancel, Trade
from tests.integration.client.publisher import until
from tests.integration.client.record_writer import RecordWriter
from tests.integration.conftest import patient

SYMBOLS = ["AAPL", "MSFT", "IBM"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(silence, "ANSWER_LIMIT_S", 0.2)
    monkeypatch.setattr(intake, "KEYS_AT_MOST_EVERY_S", 0.05)


class Life:
    """A service's life: what it wrote, and what it would show as the latest."""

    def __init__(self, server: Any, rng: random.Random) -> None:
        self.rng = rng
        self.writer = RecordWriter(server)
        self.writer.own_the_database()
        self.latest: dict[tuple[Kind[Any], str], Any] = {}
        self.trades: dict[str, list[Trade]] = defaultdict(list)
        self.accepted: dict[tuple[Kind[Any], str], int] = defaultdict(int)

    def write(self) -> None:
        batch = []
        for _ in range(self.rng.randrange(1, 12)):
            kind, symbol = self.rng.choice(KINDS), self.rng.choice(SYMBOLS)
            late = kind.may_be_late and symbol in self.seen(kind) and self.rng.random() < 0.3
            record = self.writer.make(kind, symbol, late_ns=self.rng.choice([1, 5_000]) * late)
            if kind in (CORRECTIONS, CANCELS):
                record.exchange = "Z"  # of a trade that is not known
            newest = self.latest.get((kind, symbol))
            if kind.may_be_late:
                record.newest = newest is None or newest.ts_event_ns <= record.ts_event_ns
            if kind.has_key and (not kind.may_be_late or record.newest):
                self.latest[kind, symbol] = record
            if kind is TRADES:
                self.trades[symbol].append(record)
            self.accepted[kind, symbol] += 1
            batch.append((kind, record))
        self.writer.write(*batch)

    def seen(self, kind: Kind[Any]) -> set[str]:
        return {symbol for other, symbol in self.latest if other is kind}

    def cancel_latest(self) -> None:
        """Cancel a symbol's latest trade: the key has the newest of the others."""
        symbol = self.rng.choice(SYMBOLS)
        left = self.trades[symbol]
        if len(left) < 2:
            return
        wrong: Trade = self.latest[TRADES, symbol]
        left.remove(wrong)
        newest = max(left, key=lambda one: (one.ts_event_ns, one.seq))
        self.latest[TRADES, symbol] = newest
        cancel: Cancel = self.writer.make(CANCELS, symbol)
        cancel = attrs.evolve(
            cancel, id=wrong.id, exchange=wrong.exchange, tape=wrong.tape,
        )  # fmt: skip
        self.accepted[CANCELS, symbol] += 1
        self.writer.set_key(TRADES, newest)
        self.writer.write((CANCELS, cancel))

    async def disturb(self) -> None:
        what = self.rng.choice(["cut", "pause", "garbage", "cancel", "nothing", "nothing"])
        server = self.writer.server
        if what == "cut":
            await anyio.to_thread.run_sync(self.writer.cut_readers)
        elif what == "pause":
            server.stop_answering()
            await anyio.sleep(self.rng.uniform(0.0, 0.4))
            server.answer_again()
        elif what == "cancel":
            self.cancel_latest()
        elif what == "garbage":
            with server.client() as client:
                client.publish(self.rng.choice(KINDS).event, self.rng.randbytes(50))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_what_was_accepted_was_seen_or_is_counted(fresh_valkey: Any, loop: str, seed: int) -> None:
    async def main() -> None:
        life = Life(fresh_valkey, random.Random(seed))
        seen: dict[tuple[str, str], list[int]] = defaultdict(list)
        articles: list[tuple[int, int]] = []
        for _ in range(20):
            life.write()
        begun = defaultdict(int, life.accepted)
        with anyio.fail_after(patient(60)):
            channels = [*CHANNELS, "news"]
            url = life.writer.server.url
            async with (
                mdservice.open_stream(url, SYMBOLS, channels) as records,
                anyio.create_task_group() as tasks,
            ):

                async def read() -> None:
                    async for record in records:
                        if isinstance(record, mdservice.Article):
                            articles.append((record.id, record.ts_event_ns))
                        else:
                            name = type(record).__name__ + ("Daily" * getattr(record, "daily", 0))
                            seen[name, record.symbol].append(record.seq)

                tasks.start_soon(read)
                for _ in range(40):
                    for _ in range(life.rng.randrange(8)):
                        life.write()
                    await life.disturb()
                    await anyio.sleep(life.rng.choice([0, 0, 0.02]))
                await until(lambda: records.status().connected)
                for kind in KINDS:
                    for symbol in SYMBOLS:
                        if kind in (CORRECTIONS, CANCELS):
                            continue
                        record = life.writer.next(kind, symbol)
                        life.accepted[kind, symbol] += 1
                        if kind.has_key:
                            life.latest[kind, symbol] = record
                ends = {(kind, symbol): record for (kind, symbol), record in life.latest.items()}
                await until(
                    lambda: all(
                        records.latest(symbol, kind.channel) == _as_read(record)
                        for (kind, symbol), record in ends.items()
                    )
                )
                await until(lambda: not records.status().waiting)
                await anyio.sleep(0.3)
                status = records.status()
                tasks.cancel_scope.cancel()
        for (name, symbol), seqs in seen.items():
            assert len(set(seqs)) == len(seqs), (name, symbol, seqs)
        published = sum(life.accepted[NEWS, symbol] for symbol in SYMBOLS)
        assert len(set(articles)) == len(articles) == published
        assert status.trimmed == 0
        for kind in KINDS:
            if kind is NEWS or kind in (CORRECTIONS, CANCELS):
                continue
            counts = status.channels[kind.channel]
            assert counts.starts == counts.conflated == counts.dropped == 0, (kind, counts)
            name = type(life.latest[kind, SYMBOLS[0]]).__name__
            name += "Daily" * (kind.channel == "dailyBars")
            least = most = 0
            for symbol in SYMBOLS:
                seqs, accepted = seen[name, symbol], life.accepted[kind, symbol]
                before = max(min(seqs), begun[kind, symbol])
                least += accepted - before - sum(seq > before for seq in seqs)
                most += accepted - min(seqs) - (len(seqs) - 1)
            # A late record of the time before the start may count as one that a cut missed.
            assert least <= counts.missed <= most, (kind, counts)

    anyio.run(main, backend=loop)


def _as_read(record: Any) -> Any:
    return attrs.evolve(record, ts_recv_ns=record.ts_event_ns)
