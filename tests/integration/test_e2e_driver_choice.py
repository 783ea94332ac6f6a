"""Which driver feeds the service, when that changes, and starts that take their time.

All of it starts at once and goes on side by side: what is waited for here is mostly time.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.integration.conftest import patient

DRIVERS = ["websockets", "alpaca-py"]
BROKEN = {
    "ImportError": "raise ImportError('broken on purpose')",
    "RuntimeError": "raise RuntimeError('broken on purpose')",
    "empty": "",
    "hangs": "import time\ntime.sleep(1000)",
}
T0 = 1_763_653_904_208_912_345


@attrs.frozen
class Started:
    simulator: Any
    service: Any
    listener: Any
    at_s: float

    @property
    def driver(self) -> str:
        driver: str = self.service.status()["feed"]["driver"]
        return driver

    @property
    def states(self) -> list[str]:
        return [message["state"] for message in self.listener.states]

    def works(self) -> None:
        """Ready, and a quote comes through."""
        left_s = max(1.0, 40 - (time.time() - self.at_s))
        self.service.wait_ready(within=left_s)
        self.simulator.quotes(("AAPL", 1, 2, T0))
        self.listener.wait("AAPL", 1)

    def connected_after_s(self) -> float:
        at = self.listener.state("connected")["at"]
        return datetime.fromisoformat(at[:26] + "+00:00").timestamp() - self.at_s


def broken_alpaca(folder: Path, source: str) -> str:
    """A folder with an ``alpaca`` package of this source; for ``PYTHONPATH``."""
    (folder / "alpaca").mkdir()
    (folder / "alpaca" / "__init__.py").write_text(source)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def started(module_stage: Any) -> dict[str, Started]:
    """Every start of this file."""

    def start(simulator: Any, driver: str = "auto", **env: str) -> Started:
        valkey = module_stage.valkey()
        listener = module_stage.listener(valkey)
        at_s = time.time()
        service = module_stage.service(
            simulator, valkey, MDSERVICE_DRIVER=driver, MDSERVICE_SYMBOLS="AAPL", **env
        )
        return Started(simulator, service, listener, at_s)

    simulators = {name: module_stage.simulator() for name in ("stalls", "refuses", "works")}
    for when in ("upgrade", "connect"):
        simulators["stalls"].stall(when, times=1)
    simulators["refuses"].refuse_next(500, when="auth", times=3)
    made = {
        "hangs": start(
            module_stage.simulator(),
            PYTHONPATH=broken_alpaca(module_stage.folder(), BROKEN["hangs"]),
        )
    }
    made["hangs"].service.wait_answers()  # its time limit counts: not beside so many others
    for name, simulator in simulators.items():
        made[name] = start(simulator)
        if name != "stalls":  # nor these: two logins that take too long change the driver
            made[name].service.wait_answers().until(lambda s: s["feed"]["connected"], within=60)
    for driver in DRIVERS:
        mute, full = module_stage.simulator(), module_stage.simulator()
        mute.stall("auth")
        full.refuse_next(406, when="auth", times=1000)
        made[f"mute {driver}"] = start(mute, driver)
        made[f"full {driver}"] = start(full, driver)
    for name, source in BROKEN.items():
        if name not in made:
            folder = broken_alpaca(module_stage.folder(), source)
            made[name] = start(module_stage.simulator(), PYTHONPATH=folder)
    return made


@pytest.mark.parametrize("driver", [*DRIVERS, "auto"])
def test_started_before_its_feed_it_waits_and_says_so(stage: Any, driver: str) -> None:
    probe = stage.simulator()
    port, rest_url = probe.port, probe.rest_url
    probe.close()
    valkey = stage.valkey()
    listener = stage.listener(valkey)
    service = stage.service(
        f"ws://127.0.0.1:{port}/v2/iex", valkey, MDSERVICE_DRIVER=driver,
        MDSERVICE_SYMBOLS="AAPL", MDSERVICE_REST_URL=rest_url,
    ).wait_answers()  # fmt: skip
    service.until(lambda s: s["feed"]["last_error"])
    ready, reasons = service.ready()
    assert not ready
    assert any("feed" in reason.lower() for reason in reasons)
    assert service.status()["state"] in {"starting", "degraded"}
    if driver == "auto":
        seen: set[str] = set()
        stage.eventually(
            lambda: seen.add(service.status()["feed"]["driver"]) or len(seen) == 2,
            what="both alternate",
        )
    told = [message["state"] for message in listener.states]
    assert "fallback" not in told, "the outage is the network's"
    assert "connected" not in told
    simulator = stage.simulator(port=port)
    service.wait_ready(within=30)
    simulator.quotes(("AAPL", 1, 2, T0))
    listener.wait("AAPL", 1)
    told = [message["state"] for message in listener.states]
    changed = driver == "auto" and service.status()["feed"]["driver"] == "websockets"
    assert told == (["fallback", "connected"] if changed else ["connected"])


def test_auto_starts_with_alpaca_py(started: dict[str, Started]) -> None:
    works = started["works"]
    works.works()
    assert works.driver == "alpaca-py"
    assert works.states == ["connected"]


@pytest.mark.parametrize("name", ["ImportError", "RuntimeError", "empty", "hangs"])
def test_auto_goes_on_with_the_raw_driver_where_alpaca_py_cannot_work(
    started: dict[str, Started], name: str
) -> None:
    broken = started[name]
    broken.works()
    # An import that hangs is given up twice, after 15 s each.
    assert broken.connected_after_s() < patient(50), broken.service.said
    assert broken.driver == "websockets"
    assert broken.listener.state("fallback")["driver"] == "websockets"
    changed = [line for line in broken.service.stderr.splitlines() if "driver" in line]
    assert any("alpaca-py" in line and "websockets" in line for line in changed)
    assert broken.service.end() == 0, broken.service.said


def test_two_failed_starts_change_the_driver_and_raw_then_stays(
    started: dict[str, Started],
) -> None:
    """Servers that accept and never answer do not hold it up."""
    stalls = started["stalls"]
    stalls.works()
    assert stalls.driver == "websockets"
    assert stalls.listener.state("fallback")["driver"] == "websockets"
    stalls.simulator.drop()
    stalls.service.until(lambda s: s["feed"]["reconnects"] == 1)
    stalls.service.wait_ready()
    assert stalls.driver == "websockets"
    assert stalls.states.count("fallback") == 1


def test_refusals_by_code_never_change_the_driver(started: dict[str, Started]) -> None:
    refuses = started["refuses"]
    refuses.works()
    assert refuses.driver == "alpaca-py"
    assert "fallback" not in refuses.states


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_feed_that_never_answers_the_login_is_tried_again(
    started: dict[str, Started], driver: str
) -> None:
    mute = started[f"mute {driver}"]
    mute.works()
    assert mute.driver == driver


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_slot_of_a_dead_session_is_waited_for(started: dict[str, Started], driver: str) -> None:
    full = started[f"full {driver}"]
    full.service.until(lambda s: s["feed"]["last_error"], within=30)
    assert "406" in full.service.status()["feed"]["last_error"]
    _, reasons = full.service.ready()
    assert any("slot" in reason or "connection limit" in reason for reason in reasons), reasons
    assert full.service.process.poll() is None
