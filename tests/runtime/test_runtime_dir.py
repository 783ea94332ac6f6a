"""The folder of the sockets: made for this user alone, and not trusted otherwise."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from mdservice.errors import ConfigurationError
from mdservice.runtime.runtime_dir import (
    can_serve_at,
    check_socket_folder,
    default_socket,
    prepare_socket_folder,
)


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default socket in a temporary folder that is this test's alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return default_socket({})


def test_the_runtime_folder_of_the_session_is_preferred(tmp_path: Path) -> None:
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "mdservice.sock"


@pytest.mark.parametrize(
    "kind", ["empty", "relative", "missing", "a file", "below a file", "not writable", "NUL"]
)
def test_a_runtime_folder_that_cannot_be_used_counts_as_not_set(
    socket: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    if kind == "not writable":
        monkeypatch.setattr(os, "access", lambda *_: False)
    given = {
        "empty": "",
        "relative": "run",
        "missing": str(tmp_path / "missing"),
        "a file": str(file),
        "below a file": str(file / "run"),
        "not writable": str(tmp_path),
        "NUL": "/a\0b",
    }[kind]
    assert default_socket({"XDG_RUNTIME_DIR": given}) == socket


def test_the_runtime_folder_of_another_user_counts_as_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path)}).parent != tmp_path


def test_without_one_it_is_a_folder_of_this_user(socket: Path, tmp_path: Path) -> None:
    assert socket == tmp_path / f"mdservice-{os.geteuid()}" / "mdservice.sock"
    assert default_socket({"XDG_RUNTIME_DIR": ""}) == socket
    assert default_socket({"XDG_RUNTIME_DIR": "relative"}) == socket


def test_the_folder_is_made_private_when_serving_and_not_before(socket: Path) -> None:
    can_serve_at(socket)
    assert not socket.parent.exists()
    prepare_socket_folder(socket)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    prepare_socket_folder(socket)


def test_a_folder_that_others_may_enter_is_refused(socket: Path) -> None:
    socket.parent.mkdir(mode=0o755)
    socket.parent.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"open to other users \(mode 0755"):
        prepare_socket_folder(socket)
    with pytest.raises(ConfigurationError, match="open to other users"):
        check_socket_folder(socket)


def test_a_link_in_its_place_is_refused(socket: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    socket.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="is not a folder"):
        prepare_socket_folder(socket)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(socket: Path) -> None:
    socket.parent.mkdir(mode=0o700)
    os.chown(socket.parent, 65_534, 65_534)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        check_socket_folder(socket)


def test_a_chosen_folder_has_to_exist(tmp_path: Path) -> None:
    for prepare in (prepare_socket_folder, can_serve_at):
        with pytest.raises(ConfigurationError, match="does not exist"):
            prepare(tmp_path / "missing" / "x.sock")
    prepare_socket_folder(tmp_path / "x.sock")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="not writable"):
        can_serve_at(tmp_path / "x.sock")


def test_a_temporary_folder_that_cannot_hold_it_is_refused(
    socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="cannot be created"):
        prepare_socket_folder(default_socket({}))
