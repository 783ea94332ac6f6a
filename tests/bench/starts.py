"""How long the start takes: the import, the command line, and the whole service on the simulator."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import attrs
import httpx

from tests.bench.processes import Cores, pin, plain_environment, running

_REPEATS = 5
_LIMIT_S = 20.0
_POLL_S = 0.01
_OK = 200


@attrs.frozen
class Starts:
    """Seconds from the process's start.

    Attributes:
        import_s: ``import mdservice``, to the process's end.
        help_s: ``mdservice --help``, to the process's end.
        ready_s: ``mdservice run`` on the simulator and an embedded server, for the second time,
            until ``/health/ready`` answers 200; by driver.
    """

    import_s: float
    help_s: float
    ready_s: dict[str, float]


def measure(cores: Cores, folder: Path) -> Starts:
    """Start everything a few times, on the program's core."""
    pin(cores.program)
    try:
        import_s = _median_s("-c", "import mdservice")
        help_s = _median_s("-m", "mdservice", "--help")
    finally:
        pin(cores.others)
    ready_s = {}
    for driver in ("websockets", "alpaca-py"):
        own = folder / driver
        own.mkdir()
        _to_ready_s(driver, cores, own)
        ready_s[driver] = _to_ready_s(driver, cores, own)
    return Starts(import_s, help_s, ready_s)


def _median_s(*arguments: str) -> float:
    took = []
    for _ in range(_REPEATS):
        started = time.monotonic()
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            timeout=_LIMIT_S,
            stdout=subprocess.DEVNULL,
            env=plain_environment(),
        )
        took.append(time.monotonic() - started)
    return median(took)


def _to_ready_s(driver: str, cores: Cores, folder: Path) -> float:
    path = folder / "api.sock"
    path.unlink(missing_ok=True)
    environment = {"MDSERVICE_SOCKET": str(path), "MDSERVICE_DRIVER": driver}
    started = time.monotonic()
    with running(
        "mdservice",
        "run",
        core=cores.program,
        others_core=cores.others,
        log=folder / "mdservice.log",
        environment=environment,
    ) as child:
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, timeout=_LIMIT_S) as client:
            while time.monotonic() - started < _LIMIT_S:
                child.check_alive()
                try:
                    if client.get("http://service/health/ready").status_code == _OK:
                        return time.monotonic() - started
                except httpx.TransportError:
                    pass  # it does not listen yet
                time.sleep(_POLL_S)
        raise RuntimeError(f"mdservice was not ready within {_LIMIT_S} s\n{child.last_words()}")
