"""With the log format ``json`` each line that a long-running program prints is one JSON object."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 40.0


def lines_of(
    folder: Path, *arguments: str, until: str | None = None, **environ: str
) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and each line of stdout and stderr as JSON.

    With ``until`` the program gets SIGTERM once such a line has come.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {**kept, "MDSERVICE_LOG_FORMAT": "json", "XDG_RUNTIME_DIR": str(folder)} | environ
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = ["timeout", str(LIMIT_S), sys.executable, "-m", "mdservice", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        lines = []
        for line in program.stdout:
            lines.append(json.loads(line))
            if until is not None and until in line:
                program.send_signal(signal.SIGTERM)
                until = None
    assert all(isinstance(line, dict) and "event" in line for line in lines)
    return program.returncode, lines


@pytest.mark.parametrize(
    ("arguments", "until"),
    [
        (("run",), "p&l "),
        (("gateway", "--gateway-http", "127.0.0.1:0"), "positions from"),
        (("simulate",), "positions at"),
    ],
)
def test_announcements_are_json(tmp_path: Path, arguments: tuple[str, ...], until: str) -> None:
    code, lines = lines_of(tmp_path, *arguments, until=until, MDSERVICE_GATEWAY_HTTP="127.0.0.1:0")
    assert code == 0
    assert any(until in line.get("message", "") for line in lines)


@pytest.mark.parametrize("way", ["variable", "quoted variable", "flag", "file"])
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
