"""The programs of a soak: Valkey, the simulator, the service and the gateway, each a process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from mdservice.redis_io.embedded import find_server

__all__ = ["SYMBOLS", "Program", "Programs", "Usage", "free_port", "say"]

_END_LIMIT_S = 15.0
_REPOSITORY = Path(__file__).resolve().parents[2]
_FOREIGN = ("MDSERVICE_", "ALPACA_", "APCA_", "REDIS_URL", "XDG_RUNTIME_DIR")
SYMBOLS = tuple(f"S{number:03}" for number in range(200))
"""The stocks that are followed all the time."""


@attrs.frozen
class Usage:
    """What a process uses now.

    Attributes:
        rss_mb: Its memory, megabytes.
        descriptors: Its open files and sockets.
        threads: Its threads.
        cpu_s: The processor time that it has used, seconds.
    """

    rss_mb: float
    descriptors: int
    threads: int
    cpu_s: float


def say(line: str) -> None:
    """A line for people, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Program:
    """One process that can be killed, started again, stopped and continued.

    Args:
        name: What it is called in the report.
        command: Its command line.
        folder: Where it runs and where its log is.
        environment: In addition to the present one, without settings of a service.
    """

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = folder / f"{name}.log"
        self._folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        self._environment = {**kept, "PYTHONPATH": str(_REPOSITORY), **environment}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; its output is appended to its log."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=self._environment,
            )

    def kill(self) -> None:
        """End it at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Freeze it, until :meth:`go_on`."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue it."""
        os.kill(self.pid, signal.SIGCONT)

    def ended(self) -> int | None:
        """The exit code of a process that has ended by itself."""
        return None if self._process is None else self._process.poll()

    def close(self) -> None:
        """Ask it to end, and kill it if it does not."""
        if self._process is None or self._process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            self.go_on()
        self._process.terminate()
        try:
            self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def usage(self) -> Usage:
        """What it uses now."""
        folder = Path("/proc", str(self.pid))
        times = (folder / "stat").read_text().rpartition(")")[2].split()
        lines = (folder / "status").read_text().splitlines()
        words = dict(line.split(":", 1) for line in lines if ":" in line)
        return Usage(
            rss_mb=int(words["VmRSS"].split()[0]) / 1024,
            descriptors=len(list((folder / "fd").iterdir())),
            threads=int(words["Threads"]),
            cpu_s=(int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
        )


@attrs.frozen
class Programs:
    """All of them, with their addresses.

    Attributes:
        folder: Where their logs, sockets and the journal are.
        redis: Valkey, on a UNIX socket.
        simulator: Alpaca.
        service: The service under test.
        gateway: P&L, limits and breaker.
        redis_url: Where Valkey listens.
        http: The service's API.
        relay: The relay's URL for quotes.
    """

    folder: Path
    redis: Program
    simulator: Program
    service: Program
    gateway: Program
    redis_url: str
    http: str
    relay: str

    @classmethod
    def in_folder(cls, folder: Path, rate: int) -> Programs:
        """The programs, not started.

        Args:
            folder: Exists, and its path is short enough for a UNIX socket.
            rate: Quotes a second.
        """
        redis_socket = folder / "valkey.sock"
        redis_url = f"unix://{redis_socket}"
        feed, http, relay, pnl = (f"127.0.0.1:{free_port()}" for _ in range(4))
        settings = {
            # As a real account, since on the simulator the service runs a gateway of its own.
            "MDSERVICE_FEED": "iex",
            "MDSERVICE_FEED_URL": f"ws://{feed}/v2/iex",
            "MDSERVICE_CRYPTO_URL": f"ws://{feed}/v1beta3/crypto/us",
            "MDSERVICE_OPTIONS_URL": f"ws://{feed}/v1beta1/indicative",
            "MDSERVICE_NEWS_URL": f"ws://{feed}/v1beta1/news",
            "MDSERVICE_TRADING_STREAM_URL": f"ws://{feed}/stream",
            "MDSERVICE_REST_URL": f"http://{feed}",
            "MDSERVICE_TRADING_URL": f"http://{feed}",
            "MDSERVICE_SYMBOLS": ",".join((*SYMBOLS, "BTC/USD", "ETH/USD")),
            "MDSERVICE_CHANNELS": "quotes,trades,bars,statuses",
            "MDSERVICE_NEWS": "*",
            "MDSERVICE_POSITIONS": "alpaca",
            "MDSERVICE_REDIS_URL": redis_url,
            "MDSERVICE_SOCKET": str(folder / "api.sock"),
            "MDSERVICE_HTTP": http,
            "MDSERVICE_RELAY": relay,
            "MDSERVICE_GATEWAY_HTTP": pnl,
            "MDSERVICE_JOURNAL": str(folder / "journal"),
            "MDSERVICE_JOURNAL_BYTES": "100000000",
            "MDSERVICE_LOG_FORMAT": "json",
            "ALPACA_API_KEY": "soak-key",
            "ALPACA_SECRET_KEY": "soak-secret",
        }
        python = [sys.executable, "-m", "mdservice"]
        valkey = [
            *(str(find_server()), "--port", "0", "--unixsocket", str(redis_socket)),
            *("--save", "", "--appendonly", "no", "--dir", str(folder)),
        ]
        port = feed.rpartition(":")[2]
        market = [sys.executable, "-m", "tests.soak.market", port, str(rate)]
        return cls(
            folder,
            Program("valkey", valkey, folder, {}),
            Program("simulator", market, folder, {}),
            Program("service", [*python, "run"], folder, settings),
            Program("gateway", [*python, "gateway"], folder, settings),
            redis_url,
            f"http://{http}",
            f"ws://{relay}/v2/iex",
        )

    @property
    def all(self) -> tuple[Program, ...]:
        """In the order in which they start."""
        return self.redis, self.simulator, self.service, self.gateway

    def start(self) -> None:
        """Start them. Each waits for those that it needs."""
        for program in self.all:
            program.start()
            time.sleep(0.5)

    def close(self) -> None:
        """End them, the last one first, and remove the journal."""
        for program in reversed(self.all):
            program.close()
        shutil.rmtree(self.folder / "journal", ignore_errors=True)
