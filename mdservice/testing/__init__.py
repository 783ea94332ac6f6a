"""Fakes and fault injection, for the tests of this package and of programs that embed it."""

from mdservice.testing.fake_feed import FakeDriver, FakeHistory, FakeLink, VirtualClock
from mdservice.testing.fake_positions import FakePositions
from mdservice.testing.memory_lease import MemoryGroup, MemoryLease
from mdservice.testing.memory_store import MemoryPriceStore, Slow, StoreFault

__all__ = [
    "FakeDriver",
    "FakeHistory",
    "FakeLink",
    "FakePositions",
    "MemoryGroup",
    "MemoryLease",
    "MemoryPriceStore",
    "Slow",
    "StoreFault",
    "VirtualClock",
]
