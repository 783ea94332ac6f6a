"""The faults, each with the alerts that it raises: one small function and one row each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Final

import attrs

from tests.operations.bench import Bench
from tests.operations.promtool import Firing

__all__ = ["FAULTS", "Row"]

_STOCKS: Final = ({"feed": "stocks"},)
_ONE: Final[tuple[dict[str, str], ...]] = ({},)
"""One alert that has no label but those of its target."""
_MANY: Final = 100_000


def _prepared(_bench: Bench) -> AbstractAsyncContextManager[None]:
    return nullcontext()


@attrs.frozen
class Row:
    """A fault, and what it raises.

    Attributes:
        fault: Holds while its block is open.
        firing: The alerts that fire ``within_s`` after its begin, and no other ever does.
        within_s: Seconds, a multiple of the scrapes' 15.
        over_s: So long after the fault has ended no alert fires.
        settings: Settings of the service, besides the usual.
        prepare: What is there from before the fault until after it.
    """

    fault: Callable[[Bench], AbstractAsyncContextManager[None]]
    firing: Firing
    within_s: int
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


# Redis


@asynccontextmanager
async def redis_away(bench: Bench) -> AsyncIterator[None]:
    bench.store.down = True
    bench.store.drop_connection()
    yield
    bench.store.down = False


FAULTS: Final = (
    Row(feed_down, {"MdserviceFeedDown": _STOCKS}, 120),
    Row(redis_away, {"MdserviceRedisDown": _ONE}, 90),
)
