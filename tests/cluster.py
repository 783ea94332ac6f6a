"""A real cluster: Valkey servers on loopback, which share the slots."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from mdservice.redis_io.embedded import find_server
from tests.conftest import free_port

_LIMIT_S = 60.0
_SLOTS = 16_384


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition gives something true, which is returned."""
    deadline = time.monotonic() + _LIMIT_S
    while True:
        with suppress(redis.RedisError, OSError):
            if found := condition():
                return found
        assert time.monotonic() < deadline, f"not within {_LIMIT_S} s: {what}"
        time.sleep(0.02)


class ClusterNode:
    """One server of a cluster.

    Args:
        ports: Keeps its ports from other programs, also while it does not run.
        folder: Its own.
        timeout_ms: As :class:`RealCluster` has it.
        options: Of the server.
    """

    def __init__(
        self, ports: ExitStack, folder: Path, timeout_ms: int, options: tuple[str, ...]
    ) -> None:
        self.port, self._bus_port = free_port(ports), free_port(ports)
        self.folder = folder
        folder.mkdir()
        self.path = folder / "s"
        self._options = ("--cluster-node-timeout", str(timeout_ms), *options)
        self._process: subprocess.Popen[bytes] | None = None
        self.id = ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Run it; it answers when this returns."""
        command = [str(find_server()), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += [
            "--unixsocket",
            str(self.path),
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            str(self._bus_port),
        ]
        command += ["--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"]
        command += ["--save", "", "--loglevel", "warning", "--dir", str(self.folder)]
        command += self._options
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self.id = wait_for(lambda: self.ask("CLUSTER", "MYID").decode(), f"{self.address} answers")

    def client(self, **options: Any) -> redis.Redis:
        """A plain client of this node."""
        return redis.Redis(port=self.port, **options)

    def ask(self, *words: Any) -> Any:
        """The reply to a command."""
        with self.client() as client:
            return client.execute_command(*words)

    def meet(self, other: ClusterNode) -> None:
        self.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other._bus_port)

    def kill(self) -> None:
        """End it at once; it has saved nothing but its view of the cluster."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop_answering(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def answer_again(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)


class RealCluster:
    """Three primaries, and replicas of the first ones.

    Args:
        replicas: The numbers of the primaries that have a replica.
        timeout_ms: A node that is silent for so long counts as failed.
        options: Of every server.
    """

    def __init__(
        self, *options: str, replicas: Sequence[int] = (), timeout_ms: int = 15_000
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vkc-"))
        names = [f"p{i}" for i in range(3)] + [f"r{i}" for i in replicas]
        self._ports = ExitStack()
        nodes = [
            ClusterNode(self._ports, self._folder / name, timeout_ms, options) for name in names
        ]
        self.primaries, self.replicas = nodes[:3], nodes[3:]
        self._replicated = [self.primaries[i] for i in replicas]

    @property
    def nodes(self) -> list[ClusterNode]:
        return [*self.primaries, *self.replicas]

    @property
    def url(self) -> str:
        return self.url_with("")

    def url_with(self, login: str) -> str:
        """The URL, with ``user:password@``."""
        return f"redis+cluster://{login}{','.join(node.address for node in self.primaries)}"

    def start(self) -> None:
        """Form the cluster; it serves every slot when this returns."""
        for node in self.nodes:
            node.start()
        bounds = [_SLOTS * i // 3 for i in range(4)]
        for epoch, node in enumerate(self.primaries):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", bounds[epoch], bounds[epoch + 1] - 1)
        for place, node in enumerate(self.nodes):
            for other in self.nodes[:place]:
                node.meet(other)  # gossip alone takes seconds
        known = f"cluster_known_nodes:{len(self.nodes)}".encode()
        for node in self.nodes:
            wait_for(lambda node=node: known in node.ask("CLUSTER", "INFO"), "the nodes have met")
        for primary, replica in zip(self._replicated, self.replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.id)
        self.wait_works()
        for replica in self.replicas:
            wait_for(lambda node=replica: node.ask("ROLE")[3] == b"connected", "a replica follows")

    def wait_works(self) -> None:
        """Until each node that runs sees a working cluster."""
        for node in self.nodes:
            if node._process is not None:
                wait_for(
                    lambda node=node: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"),
                    f"{node.address} sees a working cluster",
                )

    def owner(self, key: str) -> ClusterNode:
        """The node that serves a key now."""
        slot = key_slot(key.encode())

        def look() -> ClusterNode | None:
            for asked in self.nodes:
                if asked._process is None:
                    continue
                for first, last, (_, port, *_), *_ in asked.ask("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(node for node in self.nodes if node.port == port)
            return None

        found: ClusterNode = wait_for(look, f"a node serves {key}")
        return found

    def running(self) -> ClusterNode:
        """A node that runs."""
        return next(node for node in self.nodes if node._process is not None)

    def client(self) -> redis.RedisCluster:
        """A plain client of the cluster."""
        return redis.RedisCluster(host="127.0.0.1", port=self.running().port)

    def begin_to_move(self, key: str, target: ClusterNode) -> None:
        """Declare that the slot of a key is on its way; no key moves."""
        slot, source = key_slot(key.encode()), self.owner(key)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, key: str, target: ClusterNode) -> None:
        """Move the keys of the slot."""
        slot, source = key_slot(key.encode()), self.owner(key)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *keys)

    def finish_move(self, key: str, target: ClusterNode) -> None:
        """The slot of a key has a new owner."""
        slot, source = key_slot(key.encode()), self.owner(key)
        for node in (target, source, *(n for n in self.primaries if n not in (target, source))):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def move(self, key: str, target: ClusterNode) -> None:
        """Move the slot of a key to another node, as an operator does."""
        self.begin_to_move(key, target)
        while True:
            self.move_keys(key, target)
            with suppress(redis.ResponseError):  # a key was written meanwhile
                self.finish_move(key, target)
                return

    def restart(self) -> None:
        """Start the nodes that were killed, empty."""
        for node in self.nodes:
            if node._process is None:
                node.start()
        self.wait_works()

    def flush(self) -> None:
        """Remove every key."""
        for node in self.primaries:
            node.ask("FLUSHALL")

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        self._ports.close()
        shutil.rmtree(self._folder)
