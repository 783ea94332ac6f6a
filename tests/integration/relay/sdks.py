"""Programs that use Alpaca's own clients, each in a process and an environment of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.integration.conftest import eventually, patient

INSTALL_LIMIT_S = 300
_FOLDER = Path(__file__).parent / "clients"
_ENVIRONMENTS = Path(sys.prefix) / "relay-clients"
_TRADE_API = "alpaca-trade-api==3.2.0"
_SDKS = (
    "sdk3@npm:@alpacahq/alpaca-trade-api@3.1.3",
    "sdk4@npm:@alpacahq/alpaca-trade-api@4.0.2",
)

_CRYPTO = ("quotes", "trades", "bars", "updatedBars", "dailyBars", "orderbooks")
_STOCKS = (
    *("quotes", "trades", "bars", "updatedBars", "dailyBars", "statuses"),
    *("corrections", "cancelErrors"),
)
_EACH = {"crypto": _CRYPTO, "options": ("quotes", "trades"), "news": ("news",)}


def _environment(name: str, tool: str, install: Callable[[str, Path], list[list[str]]]) -> Path:
    """A folder with these packages, made once; skips the test where that is impossible."""
    found = shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
    if found is None:
        pytest.skip(f"needs {tool}, to install the client")
    folder = _ENVIRONMENTS / name
    done = folder / "done"
    folder.mkdir(parents=True, exist_ok=True)
    with (_ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            for command in install(found, folder):
                ended = subprocess.run(
                    command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
                )
                if ended.returncode:
                    pytest.skip(f"the client cannot be installed: {ended.stderr[-500:]}")
            done.touch()
    return folder


def _this_python() -> list[str]:
    return [sys.executable]


def _old_python() -> list[str]:
    def install(uv: str, folder: Path) -> list[list[str]]:
        python = str(folder / "bin" / "python")
        return [
            [uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "-q", "--python", python, _TRADE_API],
        ]

    folder = _environment(_TRADE_API.replace("==", "-"), "uv", install)
    return [str(folder / "bin" / "python")]


def _node() -> list[str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which runs the client")

    def install(npm: str, folder: Path) -> list[list[str]]:
        options = ["--no-audit", "--no-fund", "--no-save", "--ignore-scripts"]
        return [[npm, "install", *options, "--prefix", str(folder), *_SDKS]]

    folder = _environment("javascript-3.1.3-4.0.2", "npm", install)
    return ["env", f"NODE_PATH={folder / 'node_modules'}", node]


@attrs.frozen(eq=False)
class Sdk:
    """One of Alpaca's clients, or a way to use it.

    Attributes:
        name: For the test's name.
        script: The program that uses it, with its arguments.
        runner: What runs the program; it skips the test where the client cannot be had.
        channels: Which channels are tried, by feed.
        tls: Whether it is tried over TLS.
    """

    name: str
    script: tuple[str, ...]
    runner: Callable[[], list[str]]
    channels: dict[str, tuple[str, ...]]
    tls: bool = False

    def __str__(self) -> str:
        return self.name


_ALL_STOCKS = (*_STOCKS, "lulds", "imbalances")
SDKS = (
    Sdk(
        "websockets-json",
        ("plain.py", "json"),
        _this_python,
        {"stocks": _ALL_STOCKS, "crypto": _CRYPTO, "news": ("news",)},
    ),
    Sdk(
        "websockets-msgpack",
        ("plain.py", "msgpack"),
        _this_python,
        {"stocks": _ALL_STOCKS, **_EACH},
    ),
    Sdk("alpaca-py-raw", ("alpaca_py.py", "raw"), _this_python, {"stocks": _STOCKS, **_EACH}),
    Sdk("alpaca-py-models", ("alpaca_py.py", "models"), _this_python, {"stocks": _STOCKS, **_EACH}),
    Sdk(
        "alpaca-trade-api",
        ("trade_api.py",),
        _old_python,
        {"stocks": (*_STOCKS, "lulds"), "crypto": _CRYPTO, "news": ("news",)},
    ),
    Sdk("javascript-3", ("sdk3.cjs",), _node, {"stocks": (*_STOCKS, "lulds"), **_EACH}),
    Sdk("javascript-3-tls", ("sdk3.cjs",), _node, {"stocks": ("trades",), **_EACH}, tls=True),
    Sdk("javascript-4", ("sdk4.cjs",), _node, {"stocks": _ALL_STOCKS, **_EACH}),
    Sdk("javascript-4-tls", ("sdk4.cjs",), _node, {"stocks": ("trades",), **_EACH}, tls=True),
)


class SdkProcess:
    """The program of a client.

    Args:
        sdk: Which.
        folder: For what it says on stderr.
        certificate: An authority that it trusts.
    """

    def __init__(self, sdk: Sdk, folder: Path, certificate: Path) -> None:
        self.sdk = sdk
        self.records: list[tuple[str, str, Any]] = []
        """Stream, channel and record."""
        self._errors = folder / f"{sdk.name}.err"
        script, *args = sdk.script
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*sdk.runner(), str(_FOLDER / script), *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": str(folder),
                    "NODE_EXTRA_CA_CERTS": str(certificate),
                    "WEBSOCKETS_BACKOFF_INITIAL_DELAY": "0.5",
                },
            )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"["):  # the older JavaScript SDK prints lines of its own
                stream, channel, record = json.loads(line)
                self.records.append((stream, channel, record))

    def tell(self, do: str, stream: str, base: str, feed: str, channel: str, *symbols: str) -> None:
        """Have it subscribe or unsubscribe."""
        assert self.process.stdin is not None
        command = {"stream": stream, "base": base, "feed": feed, "do": do, "channel": channel}
        self.process.stdin.write(json.dumps({**command, "symbols": symbols}).encode() + b"\n")
        self.process.stdin.flush()

    def heard(self, stream: str, channel: str) -> list[Any]:
        """The records of a channel, in order."""
        return [r for s, c, r in list(self.records) if (s, c) == (stream, channel)]

    def wait(self, stream: str, channels: Collection[str], count: int) -> None:
        """Until so many records of each channel came."""

        def missing() -> dict[str, int]:
            heard = {channel: len(self.heard(stream, channel)) for channel in channels}
            return {channel: number for channel, number in heard.items() if number < count}

        self.until(lambda: not missing(), lambda: f"{count} of {stream} {missing()}")

    def until(self, condition: Callable[[], Any], what: Callable[[], Any] = str) -> None:
        """Wait for the condition, as long as the program runs."""

        def look() -> Any:
            assert self.process.poll() is None, self.errors
            return condition()

        eventually(look, within=20, what=lambda: f"{what()} {self.errors}")

    @property
    def errors(self) -> str:
        return self._errors.read_text()[-2000:]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(patient(5))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._thread.join()
        self.process.stdout.close()
