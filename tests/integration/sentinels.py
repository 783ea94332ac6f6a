"""A primary, its replicas and their sentinels, all real: processes on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import redis

from mdservice.redis_io.embedded import find_server
from tests.conftest import free_port
from tests.integration.conftest import patient

SERVICE = "prices"
_LIMIT_S = 30.0
_DOWN_AFTER_MS = 1_000
_SENTINELS = 3


def wait_until(condition: Callable[[], Any], limit_s: float = _LIMIT_S) -> None:
    """Poll until the condition holds; a server that does not answer does not fulfil it."""
    deadline_s = time.monotonic() + patient(limit_s)
    while True:
        with suppress(redis.RedisError):
            if condition():
                return
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


class Server:
    """A Valkey server on a port of its own."""

    def __init__(self, port: int, folder: Path, *options: str) -> None:
        self.port = port
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{port}"

    def start(self, *more: str) -> None:
        """Run it; answers when this returns."""
        command = [str(find_server()), *self._options, *more]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=self._folder
        )
        with self.client() as client:
            wait_until(client.ping)

    def client(self, **options: Any) -> redis.Redis:
        """A plain client, to look and to meddle."""
        return redis.Redis(port=self.port, socket_timeout=patient(5), retry=None, **options)

    @property
    def role(self) -> Any:
        with self.client() as client:
            return client.execute_command("ROLE")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop_answering(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def answer_again(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


class SentinelGroup:
    """A primary, replicas and three sentinels that know each other.

    Args:
        replicas: How many.
    """

    def __init__(self, replicas: int = 1) -> None:
        self._ports = ExitStack()
        self._folder = Path(tempfile.mkdtemp(prefix="sen-"))
        self.servers = [self._make()]
        for _ in range(replicas):
            self.servers.append(self._make("--replicaof", "127.0.0.1", str(self.servers[0].port)))
        self.sentinels: list[Server] = []
        self._witnesses: list[Server] = []
        self.primary = self.servers[0]

    def _make(self, *more: str) -> Server:
        port = free_port(self._ports)
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        options += ["--repl-diskless-sync-delay", "0", "--loglevel", "warning"]
        options += ["--dbfilename", f"{port}.rdb"]
        return Server(port, self._folder, *options, *more)

    @property
    def replicas(self) -> list[Server]:
        return [server for server in self.servers if server is not self.primary]

    @property
    def url(self) -> str:
        """The URL of the service."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def start(self) -> None:
        """Run all; the replicas are in step."""
        self.primary.start()
        for replica in self.replicas:
            replica.start()
        wait_until(lambda: all(one.role[3] == b"connected" for one in self.replicas))
        ports = [free_port(self._ports) for _ in range(_SENTINELS)]
        for port in ports:
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {self._folder}",
                f"sentinel myid {port:040x}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.primary.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
                f"sentinel failover-timeout {SERVICE} 4000",
                *(
                    f"sentinel known-replica {SERVICE} 127.0.0.1 {replica.port}"
                    for replica in self.replicas
                ),
                *(
                    f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other} {other:040x}"
                    for other in ports
                    if other != port
                ),
            ]
            config = self._folder / f"{port}.conf"
            config.write_text("\n".join(lines) + "\n")
            sentinel = Server(port, self._folder, str(config), "--sentinel")
            sentinel.start()
            self.sentinels.append(sentinel)

    def witness(self) -> Server:
        """A replica of the replica, of which no sentinel knows, so that its clients stay connected.

        It gets what the one and then the other primary publishes, in order.
        """
        (replica,) = self.replicas
        witness = self._make("--replicaof", "127.0.0.1", str(replica.port))
        self._witnesses.append(witness)
        witness.start()
        wait_until(lambda: witness.role[3] == b"connected")
        return witness

    def named(self, sentinel: Server | None = None) -> int:
        """The port of the primary that a sentinel names."""
        with (sentinel or self.sentinels[0]).client() as client:
            return int(client.sentinel_get_master_addr_by_name(SERVICE)[1])

    def fail_over(self) -> None:
        """Ask for a failover, as an operator does, and wait until there is a new primary."""
        with self.sentinels[0].client() as client:
            wait_until(lambda: client.execute_command("SENTINEL", "FAILOVER", SERVICE))
        self.moved()

    def moved(self) -> Server:
        """Wait until there is a new primary, which every sentinel names."""
        old = self.primary

        def is_over() -> bool:
            ports = {self.named(sentinel) for sentinel in self.sentinels}
            self.primary = next(server for server in self.servers if server.port in ports)
            return len(ports) == 1 and self.primary is not old and self.primary.role[0] == b"master"

        wait_until(is_over, 60)
        return self.primary

    def rejoined(self, server: Server) -> None:
        """Wait until a server is a replica in step."""
        wait_until(lambda: server.role[0] == b"slave" and server.role[3] == b"connected", 60)

    def close(self) -> None:
        for server in (*self.sentinels, *self._witnesses, *self.servers):
            server.kill()
        self._ports.close()
        shutil.rmtree(self._folder)
