"""The faults, each with the alerts that it raises: one small function and one row each."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any, Final
from unittest.mock import patch

import anyio
import attrs
import trio

from mdservice.errors import PositionsUnavailable
from mdservice.redis_io.replies import refusal
from mdservice.testing import Slow
from tests.operations.bench import SERVICE, Bench
from tests.operations.parts import (
    GATEWAY,
    Gateway,
    connect_deaf_client,
    gateway,
    journal,
    market_clock,
)
from tests.operations.promtool import Firing

__all__ = ["FAULTS", "Row"]

_STOCKS: Final = ({"feed": "stocks"},)
_ONE: Final[tuple[dict[str, str], ...]] = ({},)
"""One alert that has no label but those of its target."""
_MANY: Final = 10_000
_BACKLOG: Final = 300
"""Events, fewer than a setting may allow, so that few quotes fill it."""
_SOME: Final = 10
"""Quotes of each symbol at once: of three symbols in 200 ms a fifth of the backlog."""


def _prepared(_bench: Bench) -> AbstractAsyncContextManager[None]:
    return nullcontext()


@attrs.frozen
class Row:
    """A fault, and what it raises.

    Attributes:
        fault: Holds while its block is open.
        firing: The alerts that fire ``within_s`` after its begin, and no other ever does.
        within_s: Seconds, a multiple of the scrapes' 15.
        lasts_s: So long the fault goes on after that, without another alert.
        over_s: So long after the fault has ended no alert fires.
        settings: Settings of the service, besides the usual.
        prepare: What is there from before the fault until after it.
    """

    fault: Callable[[Bench], AbstractAsyncContextManager[None]]
    firing: Firing
    within_s: int
    lasts_s: int = 300
    over_s: int = 300
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    prepare: Callable[[Bench], AbstractAsyncContextManager[None]] = _prepared

    @property
    def name(self) -> str:
        """The fault's name."""
        return self.fault.__name__


# The feed


@asynccontextmanager
async def feed_down(bench: Bench) -> AsyncIterator[None]:
    bench.feed.fail(_MANY)
    bench.feed.drop()
    yield
    bench.feed.script.clear()


@asynccontextmanager
async def feed_mute(bench: Bench) -> AsyncIterator[None]:
    bench.muted = True
    yield
    bench.muted = False


@asynccontextmanager
async def slot_taken(bench: Bench) -> AsyncIterator[None]:
    with _login_answered(bench, 406):
        yield


@asynccontextmanager
async def login_refused(bench: Bench) -> AsyncIterator[None]:
    with _login_answered(bench, 402):
        yield


@contextmanager
def _login_answered(bench: Bench, code: int) -> Iterator[None]:
    bench.feed.refuse_next(code, times=_MANY)
    bench.feed.drop()
    yield
    bench.feed.accept()


# Redis


@asynccontextmanager
async def redis_away(bench: Bench) -> AsyncIterator[None]:
    bench.store.down = True
    bench.store.drop_connection()
    yield
    bench.store.down = False


@asynccontextmanager
async def redis_slow(bench: Bench) -> AsyncIterator[None]:
    bench.store.script.extend([Slow(1.0)] * _MANY)
    yield
    bench.store.script.clear()


@asynccontextmanager
async def redis_read_only(bench: Bench) -> AsyncIterator[None]:
    bench.store.refusal = "READONLY You can't write against a read only replica."
    yield
    bench.store.refusal = None


@asynccontextmanager
async def redis_full(bench: Bench) -> AsyncIterator[None]:
    bench.store.refusal = "OOM command not allowed when used memory > 'maxmemory'."
    yield
    bench.store.refusal = None


@asynccontextmanager
async def redis_without_rights(bench: Bench) -> AsyncIterator[None]:
    bench.store.refusal = "NOPERM this user has no permissions to run the 'set' command"
    yield
    bench.store.refusal = None


@asynccontextmanager
async def redis_login_refused(bench: Bench) -> AsyncIterator[None]:
    async def refuse() -> None:
        raise refusal("memory://", "WRONGPASS invalid username-password pair")

    with patch.object(bench.store, "connect", refuse):
        bench.store.drop_connection()
        yield


# Between feed and Redis


@asynccontextmanager
async def backlog(bench: Bench) -> AsyncIterator[None]:
    """More comes than Redis takes, which answers in 200 ms as always."""
    bench.store.script.extend([Slow(0.2)] * _MANY)
    bench.quotes_every_s, bench.quotes_at_once = 0.1, _SOME
    yield
    bench.quotes_every_s, bench.quotes_at_once = 1.0, 1
    bench.store.script.clear()


@asynccontextmanager
async def conflation(bench: Bench) -> AsyncIterator[None]:
    """A burst that is larger than the backlog."""
    bench.quote(count=2 * _BACKLOG)
    yield


@asynccontextmanager
async def price_stale(bench: Bench) -> AsyncIterator[None]:
    """The feed stops sending one symbol."""
    bench.muted_symbols = frozenset(("AAPL",))
    yield
    bench.muted_symbols = frozenset()


# The process and its machine


@asynccontextmanager
async def service_down(bench: Bench) -> AsyncIterator[None]:
    answers = bench.targets[SERVICE]
    bench.targets[SERVICE] = _no_answer
    yield
    bench.targets[SERVICE] = answers


async def _no_answer() -> None:
    return None


@asynccontextmanager
async def restart_loop(bench: Bench) -> AsyncIterator[None]:
    bench.restart_after_s = 20
    yield
    bench.restart_after_s = None


@asynccontextmanager
async def stalled_actor(bench: Bench) -> AsyncIterator[None]:
    """The store neither answers nor gives up."""
    bench.store.script.extend([Slow(100_000)] * _MANY)
    yield
    bench.store.script.clear()


@asynccontextmanager
async def loop_lag(bench: Bench) -> AsyncIterator[None]:
    """Something blocks the event loop for two seconds, six times a minute."""

    async def block() -> None:
        clock: Any = trio.lowlevel.current_clock()
        while True:
            await anyio.sleep(8)
            clock.jump(2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(block)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def clock_off(bench: Bench) -> AsyncIterator[None]:
    bench.service_clock.step(-300)
    yield
    bench.service_clock.step(300)


@asynccontextmanager
async def clock_ahead(bench: Bench) -> AsyncIterator[None]:
    """Not so far that prices become stale."""
    bench.service_clock.step(20)
    yield
    bench.service_clock.step(-20)


# The account


@asynccontextmanager
async def positions_out_of_date(bench: Bench) -> AsyncIterator[None]:
    bench.positions.always = PositionsUnavailable("fake positions are away")
    yield
    bench.positions.always = None


@asynccontextmanager
async def breaker_tripped(bench: Bench) -> AsyncIterator[None]:
    beside: Gateway = bench.parts[GATEWAY]
    beside.price(-10)
    yield
    beside.price(0)
    await beside.reset()


# The journal and the relay


@asynccontextmanager
async def disk_full(bench: Bench) -> AsyncIterator[None]:
    bench.parts["disk"].error = OSError(errno.ENOSPC, "No space left on device")
    yield
    bench.parts["disk"].error = None


@asynccontextmanager
async def journal_failing(bench: Bench) -> AsyncIterator[None]:
    bench.parts["disk"].error = OSError(errno.EIO, "Input/output error")
    yield
    bench.parts["disk"].error = None


@asynccontextmanager
async def relay_client_cut(bench: Bench) -> AsyncIterator[None]:
    connect_deaf_client(bench)
    yield


def _in_phase(phase: str) -> Sequence[Mapping[str, str]]:
    return ({"feed": "stocks", "phase": phase},)


def _refused(code: str) -> Sequence[Mapping[str, str]]:
    return ({"code": code},)


FAULTS: Final = (
    Row(feed_down, {"MdserviceFeedDown": _STOCKS}, 120),
    Row(feed_mute, {"MdserviceFeedSilent": _STOCKS}, 120),
    Row(slot_taken, {"MdserviceFeedSlotTaken": _in_phase("waiting_for_slot")}, 180),
    Row(login_refused, {"MdserviceFeedLoginRefused": _in_phase("refused")}, 90),
    Row(redis_away, {"MdserviceRedisDown": _ONE}, 90),
    Row(redis_slow, {"MdserviceRedisSlow": _ONE}, 120),
    Row(redis_read_only, {"MdserviceRedisReadOnly": _refused("READONLY")}, 60),
    Row(redis_full, {"MdserviceRedisFull": _refused("OOM")}, 60),
    Row(redis_without_rights, {"MdserviceRedisRefuses": _refused("NOPERM")}, 60),
    Row(redis_login_refused, {"MdserviceRedisRefuses": _refused("WRONGPASS")}, 60),
    Row(backlog, {"MdserviceBacklog": _ONE}, 90, lasts_s=30, settings={"backlog": _BACKLOG}),
    Row(conflation, {"MdserviceConflation": _ONE}, 15, settings={"backlog": _BACKLOG}),
    Row(price_stale, {"MdservicePriceStale": _STOCKS}, 330, over_s=660),
    Row(service_down, {"MdserviceDown": _ONE}, 90),
    Row(restart_loop, {"MdserviceRestartLoop": _ONE}, 90, over_s=660),
    Row(stalled_actor, {"MdserviceActorStalled": ({"actor": "redis_writer"},)}, 45, over_s=360),
    Row(loop_lag, {"MdserviceEventLoopLag": _ONE}, 150),
    Row(clock_off, {"MdserviceClockBehind": _STOCKS}, 120),
    Row(clock_ahead, {"MdserviceClockAhead": _ONE}, 120, prepare=market_clock),
    Row(positions_out_of_date, {"MdservicePositionsOld": _ONE}, 180),
    Row(breaker_tripped, {"MdserviceBreakerTripped": ({"job": GATEWAY},)}, 15, prepare=gateway),
    Row(disk_full, {"MdserviceJournalDiskFull": _ONE}, 60, prepare=journal),
    Row(
        journal_failing,
        {"MdserviceJournalFailing": ({"problem": "failing"},)},
        60,
        prepare=journal,
    ),
    Row(
        relay_client_cut,
        {"MdserviceRelayClientCut": ({"class": "remote"},)},
        30,
        lasts_s=0,
        over_s=330,
        settings={"relay": "127.0.0.1:0"},
    ),
)
