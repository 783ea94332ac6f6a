"""Imported by Python at its start: a machine whose clock is set by ``MachineClock``."""

import mmap
import os
import time
from pathlib import Path

with Path(os.environ["E2E_CLOCK"]).open("rb") as file:
    _offset = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
_time_ns = time.time_ns


def _shifted_ns() -> int:
    return _time_ns() + int.from_bytes(_offset[:8], "little", signed=True)


time.time_ns = _shifted_ns
time.time = lambda: _shifted_ns() / 1e9
