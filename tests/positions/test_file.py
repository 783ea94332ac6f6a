"""Positions in a file: when it is read, and what stands in for it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.positions import file as file_module
from mdservice.positions.file import FileAbsent, FilePositions
from mdservice.positions.parse import MOST_BYTES

ROW = {"symbol": "AAPL", "qty": "10", "avg_entry_price": "150.00"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "positions.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    contents: list[bytes] = []
    parse = file_module.parse_positions

    def counted(content: bytes, where: str) -> Any:
        contents.append(content)
        return parse(content, where)

    monkeypatch.setattr(file_module, "parse_positions", counted)
    return contents


def write(path: Path, *quantities: str, age_s: float = 60) -> None:
    path.write_text(json.dumps([{**ROW, "qty": qty} for qty in quantities]))
    when = time.time() - age_s
    os.utime(path, (when, when))


async def quantities(source: FilePositions) -> list[str]:
    return [str(position.qty) for position in await source.fetch()]


async def test_a_file_that_did_not_change_is_read_once(path: Path, reads: list[bytes]) -> None:
    source = FilePositions(path)
    write(path, "1", "2")
    for _ in range(5):
        assert await quantities(source) == ["1", "2"]
    assert len(reads) == 1


async def test_a_file_written_anew_in_place_is_read_again(path: Path, reads: list[bytes]) -> None:
    source = FilePositions(path)
    write(path, "1")
    assert await quantities(source) == ["1"]
    write(path, "2", age_s=50)
    assert await quantities(source) == ["2"]
    write(path, "22", age_s=50)
    assert await quantities(source) == ["22"]
    assert len(reads) == 3


async def test_a_file_renamed_over_it_is_read_also_with_the_same_size_and_time(
    path: Path, reads: list[bytes]
) -> None:
    source = FilePositions(path)
    write(path, "1")
    assert await quantities(source) == ["1"]
    new = path.with_name("new")
    write(new, "2")
    os.utime(new, ns=(path.stat().st_mtime_ns,) * 2)
    new.rename(path)
    assert await quantities(source) == ["2"]
    assert len(reads) == 2


async def test_changes_within_one_tick_of_the_file_systems_clock_are_seen(path: Path) -> None:
    source = FilePositions(path)
    now_ns = time.time_ns()
    for qty in "123456":
        write(path, qty)
        os.utime(path, ns=(now_ns, now_ns))
        assert await quantities(source) == [qty]


async def test_a_file_half_written_is_waited_for(path: Path) -> None:
    source = FilePositions(path)
    content = json.dumps({"positions": [ROW]})
    for part in ("", content[:1], content[:20], content[:-1], content + content[5:], "\0" * 9):
        path.write_text(part)
        with pytest.raises(PositionsUnavailable, match="holds no JSON"):
            await source.fetch()
    path.write_text(content)
    assert await quantities(source) == ["10"]


async def test_a_file_that_changes_while_it_is_read_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FilePositions(path)
    write(path, "1")

    fstat, seen = os.fstat, []

    def touched(descriptor: int) -> os.stat_result:
        if seen:
            write(path, "2", age_s=30)
        seen.append(descriptor)
        return fstat(descriptor)

    monkeypatch.setattr("mdservice.positions.file.os.fstat", touched)
    with pytest.raises(PositionsUnavailable, match="is being written"):
        await source.fetch()
    monkeypatch.undo()
    assert await quantities(source) == ["2"]


async def test_a_file_that_is_absent_is_waited_for(path: Path) -> None:
    source = FilePositions(path)
    for _ in range(2):
        with pytest.raises(FileAbsent, match=r"there is no file .*; waiting for it"):
            await source.fetch()
        write(path, "1")
        assert await quantities(source) == ["1"]
        path.unlink()


async def test_a_folder_that_is_absent_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(FileAbsent):
        await FilePositions(tmp_path / "later" / "positions.json").fetch()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            sock.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_pipe, "a pipe"),
        (make_folder, "a folder"),
        (make_socket, "a socket"),
        (make_device, "a device"),
    ],
)
async def test_what_is_no_file_is_refused_at_once(
    path: Path, make: Callable[[Path], None], kind: str
) -> None:
    make(path)
    with anyio.fail_after(2), pytest.raises(PositionsRefused, match=f"it is {kind}"):
        await FilePositions(path).fetch()


async def test_a_pipe_that_takes_the_files_place_does_not_block(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "1")
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr("mdservice.positions.file.os.stat", lambda _path: status)
    with anyio.fail_after(2), pytest.raises(PositionsRefused, match="it is a pipe"):
        await FilePositions(path).fetch()


async def test_errors_of_the_file_system_are_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: OSError) -> None:
        def raising(_path: Path) -> None:
            raise error

        monkeypatch.setattr("mdservice.positions.file.os.stat", raising)

    fail(PermissionError(13, "Permission denied"))
    with pytest.raises(PositionsRefused, match=r"positions.json cannot be read: Permission denied"):
        await FilePositions(path).fetch()
    fail(OSError(116, "Stale file handle"))
    with pytest.raises(PositionsUnavailable, match="Stale file handle"):
        await FilePositions(path).fetch()


async def test_a_path_through_a_file_is_refused(path: Path) -> None:
    write(path, "1")
    with pytest.raises(PositionsRefused, match="Not a directory"):
        await FilePositions(path / "x").fetch()


async def test_a_path_that_cannot_be_is_refused() -> None:
    with pytest.raises(PositionsRefused, match="cannot be read"):
        await FilePositions("a\0b").fetch()


async def test_a_huge_file_is_refused(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_BYTES * 1000)
    with pytest.raises(PositionsRefused, match="16 MiB"):
        await FilePositions(path).fetch()


async def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine.json", "7")
    source = FilePositions("~/mine.json")
    assert source.address == str(tmp_path / "mine.json")
    assert await quantities(source) == ["7"]


def test_the_home_folder_of_nobody_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match="home folder that is not known"):
        FilePositions("~no-such-user-here/x.json")
