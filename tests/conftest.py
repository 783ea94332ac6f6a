"""Fixtures for the whole suite: a real Valkey server, and small things about processes."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings

from mdservice.observability import logging as logs
from mdservice.observability.masking import Masker
from mdservice.redis_io.embedded import find_server

_START_LIMIT_S = 30.0
_CLOSE_LIMIT_S = 30.0
"""Until the server has noticed that a connection is closed, on a busy machine."""

# A busy machine makes no test fail: Hypothesis would measure the time of each example.
settings.register_profile("any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("any_speed"), max_examples=10)
settings.load_profile("any_speed")


def pytest_collection_finish() -> None:
    """Leave what was collected out of the search for cycles: it stays to the end."""
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Refuse a test that has its virtual clock only by a fixture.

    pytest-trio looks for a clock among the test's own arguments. Without it there, the test would
    run in real time, and be slow for no reason that one sees.
    """
    clock = "autojump_clock"
    if not isinstance(item, pytest.Function) or clock not in item.fixturenames:
        return
    if clock not in inspect.signature(item.function).parameters:
        raise pytest.UsageError(f"{item.nodeid} needs {clock} as an argument of its own")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" in config.getoption("-m"):
        return
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Configuring logs is for the process: undo what a test of the command line did."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    emit, threshold = logs._Output.emit, logs._Output.threshold
    masker, logs._masker = logs._masker, Masker(logs._masker._secrets)  # a secret may be an "x"
    yield
    logs._masker = masker
    logs._Output.emit, logs._Output.threshold = emit, threshold
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def free_port(stack: ExitStack) -> int:
    """A port without a listener until the stack ends; only a server with SO_REUSEADDR gets it."""
    # Bound and not listening: the system gives it to no other socket that asks for any port.
    place = stack.enter_context(socket.socket())
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(("127.0.0.1", 0))
    port: int = place.getsockname()[1]
    return port


class RealServer:
    """A Valkey server on a UNIX socket in a short folder of its own."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        # Short: a UNIX socket's path has about a hundred bytes, pytest's folders need more.
        self._folder = Path(tempfile.mkdtemp(prefix="vk-"))
        self.path = self._folder / "s"
        self.url = f"unix://{self.path}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Run it; answers when this returns."""
        command = [str(find_server()), "--port", "0", "--unixsocket", str(self.path)]
        command += ["--save", "", "--dir", str(self._folder), "--loglevel", "warning"]
        self._process = subprocess.Popen(
            [*command, *self._options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.005)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        """End it at once; it has saved nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop_answering(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def answer_again(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """A plain client, to look and to meddle."""
        return redis.Redis(unix_socket_path=str(self.path), **options)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[RealServer]:
    """One server for the whole run; use ``valkey``, which empties it."""
    server = RealServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def valkey(shared_valkey: RealServer) -> Iterator[RealServer]:
    """A real server, empty and with its default configuration, on a UNIX socket.

    A test that leaves a connection to it open fails, since the next tests share the server.

    Attributes ``url``, ``path``, ``pid``; ``client()`` is a plain redis-py client.
    """
    with shared_valkey.client() as client:
        client.replicaof("NO", "ONE")
        client.config_set("maxmemory", "0")
        client.flushall()
    yield shared_valkey
    with shared_valkey.client() as client:
        own, deadline = client.client_id(), time.monotonic() + _CLOSE_LIMIT_S
        while left := [one for one in client.client_list() if one["id"] != str(own)]:
            if time.monotonic() > deadline:
                who = [f"{one['name'] or 'no name'} ({one['cmd']})" for one in left]
                pytest.fail(f"{len(left)} connections to the shared Valkey are open: {who}")
            time.sleep(0.01)


@pytest.fixture
def fresh_valkey() -> Iterator[RealServer]:
    """A server of this test's own, for tests that kill, restart or lock it."""
    server = RealServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Any]:
    """One cluster of three servers for the whole run; use ``cluster``, which empties it."""
    from tests.cluster import RealCluster

    cluster = RealCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(shared_cluster: Any) -> Any:
    """A real cluster of three servers, empty and with its default configuration.

    A test may kill or move what it wants, if it puts it back.
    """
    shared_cluster.flush()
    return shared_cluster
