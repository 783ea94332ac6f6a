"""A program that was forked is like one that was started afresh."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Program, Stage, eventually
from tests.integration.fork_server import Forked

_FRESH = {"PYTHONPATH": ""}


@pytest.fixture(params=["forked", "fresh"])
def how(request: pytest.FixtureRequest) -> dict[str, str]:
    """The variables that choose how a program is started."""
    return {} if request.param == "forked" else _FRESH


def _alike(stage: Stage, *args: str, **env: str) -> Program:
    """Both say the same and end alike; the forked one."""
    folder = stage.folder()
    forked = stage.program(*args, folder=folder, **env)
    fresh = stage.program(*args, folder=folder, **env, **_FRESH)
    assert isinstance(forked.process, Forked)
    assert isinstance(fresh.process, subprocess.Popen)
    assert (forked.code(), forked.stdout, forked.stderr) == (
        fresh.code(),
        fresh.stdout,
        fresh.stderr,
    )
    return forked


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--version"], 0),
        (["run", "--help"], 0),
        (["no-such-command"], 2),
        (["status"], 1),
        (["run", "--price-ttl", "soon"], 78),
    ],
)
def test_commands_say_the_same(stage: Stage, args: list[str], code: int) -> None:
    assert _alike(stage, *args, MDSERVICE_LOG_FORMAT="console").code() == code


def test_it_has_its_own_environment_and_folder(stage: Stage) -> None:
    folder = stage.folder()
    other = stage.program("status", folder=folder, MDSERVICE_SOCKET="other.sock")
    assert other.code() == 1
    assert "other.sock" in other.stderr
    (folder / "mdservice.toml").write_text("price_ttl = 'soon'")
    found = stage.program("status", folder=folder)
    assert found.code() == 78
    assert "mdservice.toml" in found.stderr


def _market(stage: Stage, how: dict[str, str]) -> Program:
    market = stage.program("simulate", **how)
    eventually(lambda: "MDSERVICE_FEED_URL" in market.stdout, what=lambda: market.said)
    return market


def _descriptors(pid: int) -> list[str]:
    """The kinds of its descriptors: ``socket``, ``anon_inode``, ``file``."""
    found = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return sorted("file" if name.startswith("/") else name.partition(":")[0] for name in found)


def test_it_inherits_no_descriptor(stage: Stage) -> None:
    other = _market(stage, {})
    forked, fresh = _market(stage, {}), _market(stage, _FRESH)
    eventually(lambda: _descriptors(forked.pid) == _descriptors(fresh.pid))
    assert _descriptors(other.pid) == _descriptors(forked.pid)


def test_signals_end_it(stage: Stage, how: dict[str, str]) -> None:
    market = _market(stage, how)
    assert market.process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        market.process.wait(0.01)
    assert market.end(signal.SIGTERM) == 0
    market.process.send_signal(signal.SIGKILL)  # it has ended: nothing happens
    assert market.process.wait() == 0


def test_an_interrupt_ends_it(stage: Stage, how: dict[str, str]) -> None:
    market = _market(stage, how)
    assert market.end(signal.SIGINT) == 0


def test_it_can_be_killed(stage: Stage, how: dict[str, str]) -> None:
    market = _market(stage, how)
    assert market.end(signal.SIGKILL) == -signal.SIGKILL
    assert market.process.returncode == -signal.SIGKILL
    assert stage.is_gone(market.pid)
