"""The API's UNIX socket file: private, never shared, never left in the way."""

from __future__ import annotations

import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mdservice.errors import ConfigurationError, SocketInUse
from mdservice.http_api.listeners import unix_listener

_HOLDER = """
import sys
from pathlib import Path
from mdservice.http_api.listeners import unix_listener
with unix_listener(Path(sys.argv[1])):
    print("listening", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # Short: a UNIX socket's path has about a hundred bytes, pytest's folders need more.
    with tempfile.TemporaryDirectory(prefix="md-") as name:
        yield Path(name)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "mdservice.sock"


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except OSError:
            return False
    return True


def holder(path: Path) -> subprocess.Popen[bytes]:
    """Another process that listens at the path, once this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 20)
    assert ready, "it does not start"
    assert process.stdout.readline() == b"listening\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate(timeout=10)


def test_only_its_user_may_use_the_socket_and_it_leaves_nothing(folder: Path, path: Path) -> None:
    old = os.umask(0)
    try:
        with unix_listener(path):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            assert stat.S_IMODE(path.with_name("mdservice.sock.lock").lstat().st_mode) == 0o600
            assert connects(path)
            assert sorted(file.name for file in folder.iterdir()) == [
                "mdservice.sock",
                "mdservice.sock.lock",
            ]
    finally:
        os.umask(old)
    assert list(folder.iterdir()) == []


def test_the_path_can_be_taken_again_and_again(path: Path) -> None:
    for _ in range(3):
        with unix_listener(path):
            assert connects(path)


def test_a_socket_left_behind_is_replaced(folder: Path, path: Path) -> None:
    end(holder(path))
    assert path.is_socket()
    assert not connects(path)
    with unix_listener(path):
        assert connects(path)
    assert list(folder.iterdir()) == []


def test_a_running_service_is_refused_by_its_process_id(path: Path) -> None:
    process = holder(path)
    try:
        with pytest.raises(SocketInUse) as caught, unix_listener(path):
            pass
        assert f"process {process.pid}" in str(caught.value)
        assert "MDSERVICE_SOCKET" in str(caught.value)
        assert connects(path)
    finally:
        end(process)


def test_a_listener_without_a_lock_file_is_refused_too(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        with pytest.raises(SocketInUse, match=f"process {os.getpid()}"), unix_listener(path):
            pass
        assert connects(path)


def test_a_listener_with_a_full_queue_is_refused_too(path: Path) -> None:
    with ExitStack() as stack:
        foreign = stack.enter_context(socket.socket(socket.AF_UNIX))
        foreign.bind(str(path))
        foreign.listen(0)
        while True:
            caller = stack.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            try:
                caller.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(SocketInUse), unix_listener(path):
            pass


def test_of_many_that_start_together_exactly_one_wins(path: Path) -> None:
    count = 16
    start, tried = threading.Barrier(count), threading.Barrier(count)
    outcomes: list[str] = []

    def contend() -> None:
        start.wait(60)
        try:
            with unix_listener(path):
                outcomes.append("won")
                tried.wait(60)
        except SocketInUse:
            outcomes.append("refused")
            tried.wait(60)

    for _ in range(10):
        outcomes.clear()
        threads = [threading.Thread(target=contend) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert sorted(outcomes) == ["refused"] * (count - 1) + ["won"]


def test_a_file_that_another_put_there_since_is_not_removed(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        with unix_listener(path):
            path.unlink()
            other.bind(str(path))
            other.listen()
        assert connects(path)
    path.unlink()


def test_errors_of_what_runs_meanwhile_pass_unchanged(folder: Path, path: Path) -> None:
    with pytest.raises(PermissionError, match="not the socket"), unix_listener(path):
        raise PermissionError("not the socket")
    assert list(folder.iterdir()) == []


def test_a_socket_that_may_not_be_made_is_a_clear_error(folder: Path, path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    path.with_name("mdservice.sock.lock").touch(0o000)
    with pytest.raises(ConfigurationError, match="MDSERVICE_SOCKET"), unix_listener(path):
        pass


def test_a_path_that_somebody_removed_is_no_error_at_the_end(path: Path) -> None:
    with unix_listener(path):
        path.unlink()
        path.with_name("mdservice.sock.lock").unlink()


def test_something_else_at_the_path_is_left_alone(path: Path) -> None:
    path.write_text("notes")
    with pytest.raises(ConfigurationError, match="is not a socket"), unix_listener(path):
        pass
    assert path.read_text() == "notes"


def test_a_missing_folder_is_named(folder: Path) -> None:
    missing = folder / "missing"
    with (
        pytest.raises(ConfigurationError, match=f"{missing} does not exist"),
        unix_listener(missing / "mdservice.sock"),
    ):
        pass
    assert not missing.exists()


def test_the_default_folder_is_made_for_its_user_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    default = folder / f"mdservice-{os.geteuid()}"
    with unix_listener(default / "mdservice.sock"):
        assert stat.S_IMODE(default.stat().st_mode) == 0o700


def test_a_path_that_is_too_long_is_an_error_that_says_so(folder: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="too long"),
        unix_listener(folder / ("s" * 120)),
    ):
        pass


def test_the_longest_path_that_the_system_takes_works(folder: Path) -> None:
    longest = folder / ("s" * (107 - len(str(folder)) - 1))
    with unix_listener(longest):
        assert connects(longest)
