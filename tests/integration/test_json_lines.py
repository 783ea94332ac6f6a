"""With the log format ``json`` each line that a long-running program prints is one JSON object."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 40.0
_MAIN = "\nfrom mdservice.cli import main\nmain()\n"
CHOICES = [{"MDSERVICE_LOG_FORMAT": "json"}, {}]
"""Chosen, or the default of a program whose output is no terminal."""


def lines_of(
    folder: Path, *arguments: str, until: str | None = None, before: str = "", **environ: str
) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and each line of stdout and stderr as JSON.

    With ``until`` the program gets SIGTERM once such a line has come; ``before`` is Python that
    the process runs first.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {**kept, "XDG_RUNTIME_DIR": str(folder)} | environ
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    python = ("-c", before + _MAIN) if before else ("-m", "mdservice")
    command = [sys.executable, *python, *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        lines = []
        limit = threading.Timer(LIMIT_S, program.kill)
        limit.start()
        try:
            for line in program.stdout:
                lines.append(json.loads(line))
                if until is not None and until in line:
                    program.send_signal(signal.SIGTERM)
                    until = None
        finally:
            limit.cancel()
            limit.join()
    assert all(isinstance(line, dict) and "event" in line for line in lines)
    return program.returncode, lines


AT_WORK = {
    "run": ((), "p&l "),
    "gateway": (("--gateway-http", "127.0.0.1:0"), "positions from"),
    "simulate": ((), "positions at"),
}


@pytest.mark.parametrize("chosen", CHOICES, ids=["chosen", "default"])
@pytest.mark.parametrize("command", AT_WORK)
def test_announcements_are_json(tmp_path: Path, command: str, chosen: dict[str, str]) -> None:
    flags, until = AT_WORK[command]
    code, lines = lines_of(
        tmp_path, command, *flags, until=until, MDSERVICE_GATEWAY_HTTP="127.0.0.1:0", **chosen
    )
    assert code == 0
    assert any(until in line.get("message", "") for line in lines)


def test_a_search_for_an_address_finds_it(tmp_path: Path) -> None:
    _, lines = lines_of(tmp_path, "run", until="p&l ", MDSERVICE_GATEWAY_HTTP="127.0.0.1:0")
    text = "\n".join(json.dumps(line) for line in lines)
    found = re.search(r"p&l +(http\S+)", text)
    assert found is not None
    assert found[1].endswith("/api/v1/positions/pnl/realtime")


def test_console_can_be_chosen(tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    program = subprocess.run(
        [sys.executable, "-m", "mdservice", "run", "--price-ttl", "soon"],
        cwd=tmp_path, text=True, capture_output=True, timeout=LIMIT_S, check=False,
        env={**kept, "MDSERVICE_LOG_FORMAT": "console",
             "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert program.stderr.startswith("mdservice: ")


@pytest.mark.parametrize("way", ["default", "variable", "quoted variable", "flag", "file"])
@pytest.mark.parametrize("command", ["run", "gateway"])
def test_the_error_of_a_bad_setting_is_json(tmp_path: Path, way: str, command: str) -> None:
    variable = {"variable": "json", "quoted variable": '"json"'}.get(way, "")
    text = 'log_format = "json"' if way == "file" else ""
    (tmp_path / "mdservice.toml").write_text(f"[mdservice]\n{text}\n")
    flags = ("--log-format", "json") if way == "flag" else ()
    code, lines = lines_of(
        tmp_path, command, *flags, MDSERVICE_LOG_FORMAT=variable, MDSERVICE_PRICE_TTL="soon"
    )
    assert code == 78
    assert any("MDSERVICE_PRICE_TTL" in line["reason"] for line in lines)


@pytest.mark.parametrize("chosen", CHOICES, ids=["chosen", "default"])
@pytest.mark.parametrize("command", AT_WORK)
@pytest.mark.parametrize("wrong", ["--colour", "more"])
def test_the_error_of_wrong_usage_is_json(
    tmp_path: Path, command: str, wrong: str, chosen: dict[str, str]
) -> None:
    code, lines = lines_of(tmp_path, command, wrong, **chosen)
    assert code == 2
    assert wrong in lines[-1]["reason"]


@pytest.mark.parametrize("format_", ["xml", "JSON!"])
def test_the_error_of_an_unknown_format_is_json_off_a_terminal(
    tmp_path: Path, format_: str
) -> None:
    code, lines = lines_of(tmp_path, "run", MDSERVICE_LOG_FORMAT=format_)
    assert code == 78
    assert "MDSERVICE_LOG_FORMAT" in lines[-1]["reason"]


def test_a_port_that_is_taken_is_json(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for arguments in (
            ("run", "--http", address),
            ("gateway", "--gateway-http", address),
            ("simulate", "--port", address.partition(":")[2]),
        ):
            code, lines = lines_of(tmp_path, *arguments)
            assert code == 78
            assert address in lines[-1]["reason"]


_NOISE = """
import logging, sys, threading, warnings
import anyio
import mdservice.app.run, mdservice.simulator
def noise():
    warnings.warn("a warning\\nof two lines")
    for name in ("hypercorn.error", "hypercorn.access", "uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(name).error("a line\\nof %s", name)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    class Broken:
        def __del__(self):
            raise ValueError("in a finalizer")
    Broken()
run = anyio.run
def noisy(func, *args, **kwargs):
    async def main(*given):
        noise()
        {then}
        await func(*given)
    return run(main, *args, **kwargs)
anyio.run = noisy
"""


@pytest.mark.parametrize("command", AT_WORK)
def test_what_libraries_say_is_json(tmp_path: Path, command: str) -> None:
    flags, until = AT_WORK[command]
    code, lines = lines_of(
        tmp_path, command, *flags, until=until, before=_NOISE.replace("{then}", "pass"),
        MDSERVICE_GATEWAY_HTTP="127.0.0.1:0",
    )  # fmt: skip
    assert code == 0
    everything = json.dumps(lines)
    for said in ("a warning", "of hypercorn.error", "of uvicorn", "ZeroDivision", "a finalizer"):
        assert said in everything


@pytest.mark.parametrize("command", AT_WORK)
@pytest.mark.parametrize(
    ("then", "code"), [("raise RuntimeError('a crash')", 1), ("raise KeyboardInterrupt", 1)]
)
def test_an_unexpected_end_is_json(tmp_path: Path, command: str, then: str, code: int) -> None:
    ended, lines = lines_of(tmp_path, command, before=_NOISE.replace("{then}", then))
    assert ended == code
    assert lines[-1]["level"] in {"error", "critical"}
