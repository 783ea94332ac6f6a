"""The library's connections with an inlet of ours, one for each event loop.

``create_connection`` is the library's own way to another class; which attribute holds the queue
is private, so a test pins it and pyproject.toml the version.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import sniffio

from mdservice.feeds.alpaca.inlet import FrameInlet
from mdservice.feeds.driver import Frame

__all__ = ["connect_by_library", "receive_some"]


def connect_by_library(most_queued: int) -> Any:
    """The library's ``connect`` for the running event loop; both take the same arguments.

    Args:
        most_queued: Messages that may wait; beyond it TCP holds the sender back.
    """
    if sniffio.current_async_library() == "trio":
        return _trio_connect(most_queued)
    return _asyncio_connect(most_queued)


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


@cache
def _trio_connect(most_queued: int) -> Any:
    from functools import partial

    from websockets.trio.client import ClientConnection, connect

    class Connection(ClientConnection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            inlet = FrameInlet(most_queued, self.pause_reading, self.resume_reading)
            self.recv_messages = inlet  # type: ignore[assignment]  # it has what is used of it

    return partial(connect, create_connection=Connection)


@cache
def _asyncio_connect(most_queued: int) -> Any:
    from functools import partial

    from websockets.asyncio.client import ClientConnection, connect

    class Connection(ClientConnection):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            inlet = FrameInlet(most_queued, transport.pause_reading, transport.resume_reading)
            self.recv_messages = inlet  # type: ignore[assignment]  # it has what is used of it

    return partial(connect, create_connection=Connection)
