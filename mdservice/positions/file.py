"""Positions in a JSON file, which another program or a person keeps up to date."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import anyio
import attrs

from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions import source
from mdservice.positions.parse import MOST_BYTES, NotJson, parse_positions
from mdservice.positions.source import Threads

__all__ = ["FileAbsent", "FilePositions"]

_YOUNG_NS = 2 * 10**9
"""A file changed that lately may change again within the same tick of its file system's clock."""
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class FileAbsent(PositionsUnavailable):
    """There is no such file yet."""


@attrs.frozen
class _Version:
    """What tells one state of a file from another."""

    mtime_ns: int
    size: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Version:
        return cls(status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)

    @property
    def is_settled(self) -> bool:
        return time.time_ns() - self.mtime_ns > _YOUNG_NS


class FilePositions:
    """A :class:`~mdservice.positions.source.PositionSource` in a file.

    The file is read in a thread, and again only when it has changed. Best replaced by renaming
    another over it; one that is half written is waited for.

    Args:
        path: ``~`` is the home folder.

    Raises:
        ConfigurationError: There is no such home folder.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._path = Path(path).expanduser()
        except RuntimeError:
            raise ConfigurationError(
                f"the file of the positions, {path}, is in a home folder that is not known"
            ) from None
        self.address = str(self._path)
        self._threads = Threads(self.address)
        self._lock = anyio.Lock()
        self._known: tuple[_Version, tuple[Position, ...]] | None = None

    async def fetch(self) -> list[Position]:
        """See :meth:`mdservice.positions.source.PositionSource.fetch`.

        Raises:
            FileAbsent: There is no such file; a kind of PositionsUnavailable.
        """
        limit_s = source.FETCH_LIMIT_S
        try:
            with anyio.fail_after(limit_s):
                async with self._lock:
                    return await self._threads.run(self._read)
        except TimeoutError as exc:
            raise PositionsUnavailable(
                f"{self.address} cannot be read within {limit_s:g} s"
            ) from exc

    async def aclose(self) -> None:
        """See :meth:`mdservice.positions.source.PositionSource.aclose`; nothing is kept open."""

    def _read(self) -> list[Position]:
        """In a thread."""
        try:
            version = self._version(os.stat(self._path))  # noqa: PTH116 - of the same kind as fstat
            known = self._known
            if known is not None and known[0] == version:
                return list(known[1])
            version, content = self._content()
        except FileNotFoundError as exc:
            raise FileAbsent(f"there is no file {self.address}; waiting for it") from exc
        except (PermissionError, NotADirectoryError, ValueError) as exc:
            raise PositionsRefused(f"{self.address} cannot be read: {_reason(exc)}") from exc
        except OSError as exc:
            raise PositionsUnavailable(f"{self.address} cannot be read: {_reason(exc)}") from exc
        positions = self._parsed(content)
        self._known = (version, tuple(positions)) if version.is_settled else None
        return positions

    def _content(self) -> tuple[_Version, bytes]:
        # A pipe that took the file's place meanwhile must not block either: O_NONBLOCK.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(self._path, flags), "rb") as file:
            version = self._version(os.fstat(file.fileno()))
            content = file.read(MOST_BYTES + 1)
            if self._version(os.fstat(file.fileno())) != version:
                raise PositionsUnavailable(f"{self.address} is being written; waiting for the end")
        return version, content

    def _version(self, status: os.stat_result) -> _Version:
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
            raise PositionsRefused(
                f"{self.address} cannot be read: it is {kind}; name a file of JSON"
            )
        return _Version.of(status)

    def _parsed(self, content: bytes) -> list[Position]:
        try:
            return parse_positions(content, self.address)
        except NotJson as exc:
            raise PositionsUnavailable(
                f"{exc}; it is read again, in case it is being written"
            ) from exc


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
