"""The clock of the machine on which a test's programs run: set by the test, it goes on by itself."""

from __future__ import annotations

import mmap
import time
from datetime import datetime
from pathlib import Path

_PATH = Path(__file__).parent / "shifted_clock"


class MachineClock:
    """A :class:`~mdservice.clock.Clock` that programs started with :attr:`env` share.

    Args:
        folder: For the file with the difference to the real clock.
        at: The time to begin with, ISO 8601.
    """

    def __init__(self, folder: Path, at: str) -> None:
        file = folder / "clock"
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._offset = mmap.mmap(opened.fileno(), 8)
        self.env = {"PYTHONPATH": str(_PATH), "E2E_CLOCK": str(file)}
        self.set(at)

    def set(self, at: str) -> None:
        """Set the clocks of all programs."""
        target_ns = round(datetime.fromisoformat(at).timestamp()) * 1_000_000_000
        self._offset[:8] = (target_ns - time.time_ns()).to_bytes(8, "little", signed=True)

    def utc_ns(self) -> int:
        return time.time_ns() + int.from_bytes(self._offset[:8], "little", signed=True)

    def monotonic(self) -> float:
        return time.monotonic()
