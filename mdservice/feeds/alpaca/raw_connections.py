"""The library's connections with an inlet of ours, one for each event loop.

``create_connection`` is the library's own way to another class; which attribute holds the queue
is private, so a test pins it and pyproject.toml the version.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import sniffio
from websockets.client import ClientProtocol

from mdservice.feeds.alpaca.frame_reader import FrameReader
from mdservice.feeds.alpaca.inlet import FrameInlet
from mdservice.feeds.driver import Frame

__all__ = ["connect_by_library", "receive_some"]


def connect_by_library(most_queued: int, most_bytes: int) -> Any:
    """The library's ``connect`` for the running event loop; both take the same arguments.

    Args:
        most_queued: Messages that may wait; beyond it TCP holds the sender back.
        most_bytes: Of one message.
    """
    if sniffio.current_async_library() == "trio":
        return _trio_connect(most_queued, most_bytes)
    return _asyncio_connect(most_queued, most_bytes)


async def receive_some(websocket: Any) -> Sequence[Frame]:
    """All messages that wait, at least one.

    Raises:
        ConnectionClosed: The connection has ended, and all of its messages were taken.
    """
    try:
        found: Sequence[Frame] = await websocket.recv_messages.get_some()
    except (EOFError, UnicodeDecodeError):
        return (await websocket.recv(),)  # it closes, and says why
    return found


def _read_by(reader: FrameReader, protocol: ClientProtocol) -> None:
    protocol.receive_data = reader.receive_data  # type: ignore[method-assign]  # its one way in


@cache
def _trio_connect(most_queued: int, most_bytes: int) -> Any:
    from functools import partial

    from websockets.trio.client import ClientConnection, connect

    class Connection(ClientConnection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            inlet = FrameInlet(most_queued, self.pause_reading, self.resume_reading)
            self.recv_messages = inlet  # type: ignore[assignment]  # it has what is used of it
            _read_by(FrameReader(self.protocol, most_bytes, inlet.put_messages), self.protocol)

    return partial(connect, create_connection=Connection)


@cache
def _asyncio_connect(most_queued: int, most_bytes: int) -> Any:
    from functools import partial

    from websockets.asyncio.client import ClientConnection, connect

    class Connection(ClientConnection):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            inlet = FrameInlet(most_queued, transport.pause_reading, transport.resume_reading)
            self.recv_messages = inlet  # type: ignore[assignment]  # it has what is used of it
            _read_by(FrameReader(self.protocol, most_bytes, inlet.put_messages), self.protocol)

    return partial(connect, create_connection=Connection)
