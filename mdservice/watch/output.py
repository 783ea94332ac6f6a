"""Writing to whoever reads, who may be slow, or gone."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from typing import TextIO

import anyio.to_thread

__all__ = ["LineOutput"]


class LineOutput:
    """Writes lines past all buffers, in a thread: a reader that stalls holds up nothing else.

    Args:
        stream: An open file with a descriptor.
    """

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding

    async def write(self, lines: Sequence[str]) -> None:
        """Write them all.

        Cancelling gives up on a reader that takes nothing, perhaps in the middle of a line.

        Raises:
            BrokenPipeError: Nobody reads any more.
        """
        if not lines:
            return
        text = "".join(f"{line}\n" for line in lines)
        data = text.encode(self._encoding, "replace")
        await anyio.to_thread.run_sync(self._write, data, abandon_on_cancel=True)

    def reader_gone(self) -> bool:
        """Whether it is a pipe that nobody reads any more."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return any(event & select.POLLERR for _descriptor, event in poll.poll(0))

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]
