"""The faults, each with the alerts that it raises: one small function and one row each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any, Final
from unittest.mock import patch

import attrs

from mdservice.redis_io.replies import refusal
from mdservice.testing import Slow
from tests.operations.bench import Bench
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
)
