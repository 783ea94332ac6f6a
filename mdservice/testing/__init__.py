"""Fakes and fault injection, for this package's tests and for those of embedders."""

from mdservice.testing.fake_driver import FakeDriver
from mdservice.testing.fake_history import FakeHistory
from mdservice.testing.fake_link import FakeLink
from mdservice.testing.fake_positions import FakePositions
from mdservice.testing.memory_store import MemoryPriceStore, Slow, StoreFault
from mdservice.testing.virtual_clock import VirtualClock

__all__ = [
    "FakeDriver",
    "FakeHistory",
    "FakeLink",
    "FakePositions",
    "MemoryPriceStore",
    "Slow",
    "StoreFault",
    "VirtualClock",
]
