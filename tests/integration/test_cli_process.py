"""The command line as a process: what it imports, how fast it starts, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mdservice.simulator import DEMO_POSITIONS

HEAVY = {
    "alpaca", "anyio", "fastapi", "httpx", "hypercorn", "pandas", "redis", "rich", "structlog",
    "trio", "websockets",
}  # fmt: skip
LIMIT_S = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="md-") as name:
        yield Path(name)


@pytest.fixture
def environ(folder: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MDSERVICE_", "ALPACA_", "APCA_", "REDIS_"))
    }
    root = str(Path(__file__).parents[2])
    plain = {"MDSERVICE_LOG_FORMAT": "console"}  # test_json_lines.py has the other one
    return {**kept, **plain, "XDG_RUNTIME_DIR": str(folder), "PYTHONPATH": root}


def python(
    *arguments: str, folder: Path, environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["run", "--help"], 0),
        (["health"], 2),
        (["status"], 1),
        (["run", "--feed", "otc"], 78),
        (["run", "--feed", "iex"], 78),
    ],
)
def test_nothing_heavy_is_imported_where_it_is_not_used(
    folder: Path, environ: dict[str, str], arguments: list[str], code: int
) -> None:
    program = (
        "import sys, json\n"
        "from mdservice.cli import main\n"
        f"sys.argv = ['mdservice', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    print('\\n' + json.dumps([end.code, sorted({m.split('.')[0] for m in sys.modules})]))\n"
    )
    result = python("-c", program, folder=folder, environ=environ)
    assert result.returncode == 0, result.stderr
    found, modules = json.loads(result.stdout.splitlines()[-1])
    assert found == code
    assert HEAVY.isdisjoint(modules), HEAVY.intersection(modules)


def test_a_logger_is_had_without_structlog(folder: Path, environ: dict[str, str]) -> None:
    program = (
        "import sys; from mdservice.observability.logging import get_logger; get_logger('x').info('quiet');"
        "print('structlog' in sys.modules)"
    )
    result = python("-c", program, folder=folder, environ=environ)
    assert (result.stdout, result.stderr) == ("False\n", "")


def test_the_module_is_the_command(folder: Path, environ: dict[str, str]) -> None:
    result = python("-m", "mdservice", "--help", folder=folder, environ=environ)
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: mdservice [OPTIONS] COMMAND")


def test_a_configuration_error_is_one_line_and_78(folder: Path, environ: dict[str, str]) -> None:
    (folder / "mdservice.toml").write_text('[mdservice]\nsecret_key = "hid den"\n')
    result = python("-m", "mdservice", "run", folder=folder, environ=environ)
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr.startswith("mdservice: setting secret_key (file mdservice.toml): ")
    assert result.stderr.count("\n") == 1
    assert "hid den" not in result.stderr


def test_check_of_the_defaults_finds_all_well(folder: Path, environ: dict[str, str]) -> None:
    environ["MDSERVICE_RELAY"] = "127.0.0.1:0"  # the default may be in use
    result = python("-m", "mdservice", "check", folder=folder, environ=environ)
    assert result.returncode == 0, result.stdout + result.stderr
    outcomes = [line.split()[0] for line in result.stdout.splitlines()]
    assert outcomes == ["ok", "ok", "ok", "ok", "skip", "skip", "ok", "skip"]
    # On a busy machine a check may take so long that it says what it waits for.
    assert {line.split()[0] for line in result.stderr.splitlines()} <= {"..."}


def test_check_ends_with_1_when_something_failed(folder: Path, environ: dict[str, str]) -> None:
    environ["MDSERVICE_FEED"] = "simulator"
    environ["MDSERVICE_POSITIONS"] = f"file:{folder}/none.json"
    result = python("-m", "mdservice", "check", folder=folder, environ=environ)
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert "none.json" in line
    assert "create it" in line


def test_check_ends_with_78_when_the_settings_are_to_blame(
    folder: Path, environ: dict[str, str]
) -> None:
    environ["MDSERVICE_SOCKET"] = str(folder / "missing" / "x.sock")
    result = python("-m", "mdservice", "check", folder=folder, environ=environ)
    assert result.returncode == 78
    assert "FAIL  socket" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_simulate_says_how_to_use_it_and_ends_with_0(
    folder: Path, environ: dict[str, str], number: signal.Signals
) -> None:
    command = [sys.executable, "-u", "-m", "mdservice", "simulate", "--rate", "10", "--seed", "3"]
    with subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            first, second, third = (process.stdout.readline() for _ in range(3))
            url = first.split()[3]
            process.send_signal(number)
            rest, errors = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert first == f"simulating Alpaca at {url} (seed 3)\n"
    assert url.startswith("ws://127.0.0.1:")
    assert f"MDSERVICE_FEED=simulator MDSERVICE_FEED_URL={url} mdservice run" in second
    rest_url = f"http{url.removeprefix('ws').removesuffix('/v2/iex')}"
    assert third == f"positions at {rest_url}/v2/positions: 8, no trades\n"
    assert (process.returncode, rest, errors) == (0, "stopped\n", "")


def test_simulate_serves_positions_that_its_trades_change(
    folder: Path, environ: dict[str, str]
) -> None:
    command = [sys.executable, "-u", "-m", "mdservice", "simulate", "--trades", "0.05"]
    with subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("positions at "):
                    break
            url = line.split()[2].rstrip(":")
            start = {symbol: qty for symbol, (qty, _) in DEMO_POSITIONS.items()}
            ends = time.monotonic() + LIMIT_S
            positions = start
            while positions == start and time.monotonic() < ends:
                found = httpx.get(url, trust_env=False).raise_for_status().json()
                positions = {position["symbol"]: position["qty"] for position in found}
        finally:
            process.kill()
    assert line.endswith(": 8, a trade every 0.05 s\n")
    assert len(positions.keys() & start.keys()) > 4
    assert positions != start


def test_simulate_on_a_port_that_is_taken_says_so(folder: Path, environ: dict[str, str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = python(
            "-m", "mdservice", "simulate", "--port", port, folder=folder, environ=environ
        )
    assert result.returncode == 78
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_simulator_that_was_started_can_be_logged_in_to(
    folder: Path, environ: dict[str, str]
) -> None:
    command = [sys.executable, "-u", "-m", "mdservice", "simulate"]
    with subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True
    ) as sim:
        try:
            assert sim.stdout is not None
            environ["MDSERVICE_FEED_URL"] = sim.stdout.readline().split()[3]
            environ["MDSERVICE_FEED"] = "simulator"
            result = python("-m", "mdservice", "check", folder=folder, environ=environ)
        finally:
            sim.terminate()
            sim.wait(LIMIT_S)
    assert "simulator: logged in by" in result.stdout
    assert result.returncode == 0
