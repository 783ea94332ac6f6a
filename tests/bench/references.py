"""What other programs get into Redis: NautilusTrader's message bus, cryptofeed's stream back end.

Each is a real program that is fed the same frames and has the same core as the program under test.
They append to streams, one ``XADD`` a quote, with no key and no ``PUBLISH``: less work than the
service's. Both take without a limit and write later, so what counts is how long it takes until the
last quote of a flood is in Redis. They reach the server over TCP, as neither can use its socket.

Each is installed in an environment of its own, by ``just bench-references``; a variable names the
Python of another one. Where it is missing, it is left out.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from tests.bench.checks import Market
from tests.bench.processes import REPOSITORY, Child, running
from tests.bench.results import aligned
from tests.bench.runs import Stage
from tests.bench.tape import symbol_names

_ENVIRONMENTS = REPOSITORY / ".venv-references"
_START_LIMIT_S = 30.0
_ANSWER_LIMIT_S = 10.0
_WRITE_LIMIT_S = 30.0
_WARM_UP_S = 0.5
_POLL_S = 0.01
_CHECK_S = 1.0
_NOT_INSTALLED = "skipped: `just bench-references` installs it"


@attrs.frozen
class Reference:
    """A program to be compared with.

    Attributes:
        name: For people.
        package: Its name among Python's packages, and of its environment's folder.
        module: The program.
        variable: What may name the Python that has it.
    """

    name: str
    package: str
    module: str
    variable: str

    def python(self) -> str | None:
        """The Python that has it; None where it is not installed."""
        default = _ENVIRONMENTS / self.package / "bin" / "python"
        named = os.environ.get(self.variable)
        return named or (str(default) if default.exists() else None)


NAUTILUS = Reference(
    "NautilusTrader", "nautilus_trader", "tests.bench.nautilus_handler", "MDSERVICE_BENCH_NAUTILUS"
)
CRYPTOFEED = Reference(
    "cryptofeed", "cryptofeed", "tests.bench.cryptofeed_handler", "MDSERVICE_BENCH_CRYPTOFEED"
)
REFERENCES = (NAUTILUS, CRYPTOFEED)


@attrs.frozen
class Flooded:
    """A reference after one flood.

    Attributes:
        in_per_s: Quotes that it took from its socket.
        written_per_s: Quotes that it got into Redis, until the last one was.
        wrong: What is not as it must be.
    """

    name: str
    in_per_s: float
    written_per_s: float
    wrong: list[str]


def figures(floods: Sequence[Flooded]) -> dict[str, tuple[float, float]]:
    """By the name of a reference, medians: quotes a second taken in, and got into Redis."""
    names = dict.fromkeys(flood.name for flood in floods)
    own = {name: [flood for flood in floods if flood.name == name] for name in names}
    return {
        name: (median(f.in_per_s for f in runs), median(f.written_per_s for f in runs))
        for name, runs in own.items()
    }


def reference_table(floods: Sequence[Flooded]) -> str:
    """One line a reference; those that are not installed, too."""
    found = figures(floods)
    rows = [("references", "taken in", "in Redis", ""), ("", "quotes/s", "quotes/s", "")]
    for each in REFERENCES:
        if each.name in found:
            taken, written = found[each.name]
            rows.append((each.name, f"{taken:,.0f}", f"{written:,.0f}", ""))
        else:
            rows.append((each.name, "-", "-", _NOT_INSTALLED))
    return aligned(rows)


def measure(stage: Stage, reference: Reference, seconds: float, folder: Path) -> Flooded:
    """Flood a reference that is installed, and wait until all of it is in Redis."""
    market = Market()
    stage.store.flushall()
    port = _open_port(stage)
    core = stage.cores.others
    others = partial(running, core=core, others_core=core)
    arguments = (str(market.symbols), str(market.per_frame), market.encoding)
    try:
        with others("tests.bench.blaster", *arguments, log=folder / "blaster.log") as blaster:
            feed_url = f"ws://127.0.0.1:{blaster.hear(_START_LIMIT_S)['port']}"
            with running(
                reference.module,
                *(feed_url, str(port), ",".join(symbol_names(market.symbols))),
                core=stage.cores.program,
                others_core=core,
                log=folder / "reference.log",
                python=reference.python(),
            ) as child:
                try:
                    _wait_until_subscribed(blaster, child)
                    return _flood(stage, reference, seconds, blaster)
                except Exception as exc:
                    exc.add_note(f"{reference.name} logged at last:\n{child.last_words()}")
                    raise
    finally:
        stage.store.config_set("port", 0)


def _wait_until_subscribed(blaster: Child, child: Child) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        try:
            blaster.hear(_CHECK_S)
        except RuntimeError:
            child.check_alive()
            if time.monotonic() > deadline:
                raise
        else:
            return


def _flood(stage: Stage, reference: Reference, seconds: float, blaster: Child) -> Flooded:
    before = _appended(stage)
    blaster.tell({"rate": 0, "seconds": seconds})
    time.sleep(_WARM_UP_S)
    warm, warm_s = _appended(stage) - before, time.monotonic()
    blast = blaster.hear(seconds + _ANSWER_LIMIT_S)
    deadline = time.monotonic() + _WRITE_LIMIT_S
    while (appended := _appended(stage) - before) < blast["sent"] and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    took_s = time.monotonic() - warm_s
    entries = _entries(stage)
    wrong = []
    if not entries == appended == blast["sent"]:
        wrong.append(f"{blast['sent']} sent, {appended} appended, {entries} in the streams")
    in_per_s = blast["sent"] / (blast["ended"] - blast["started"])
    return Flooded(reference.name, in_per_s, (appended - warm) / took_s, wrong)


def _open_port(stage: Stage) -> int:
    """Let the server listen on TCP too, on loopback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    stage.store.config_set("bind", "127.0.0.1")
    stage.store.config_set("port", port)
    return port


def _appended(stage: Stage) -> int:
    """How often ``XADD`` was executed since the server's start."""
    commands: Any = stage.store.info("commandstats")
    calls: int = commands.get("cmdstat_xadd", {}).get("calls", 0)
    return calls


def _entries(stage: Stage) -> int:
    """How many entries all streams have."""
    pipe = stage.store.pipeline(transaction=False)
    for key in stage.store.scan_iter(count=1000, _type="stream"):
        pipe.xlen(key)
    return sum(pipe.execute())
