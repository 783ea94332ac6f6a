"""Plain HTTP requests on the simulator's port."""

from __future__ import annotations

import http
import re
from collections.abc import Mapping, Sequence

import attrs
from websockets.datastructures import Headers
from websockets.extensions.base import ServerExtensionFactory
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

__all__ = ["HttpAnswer", "HttpProtocol", "json_response", "too_many_connections", "wants_websocket"]


# The websockets library's protocol, which also takes a request that has a body.


_POST = b"POST "
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"(\r\ncontent-length:[ \t]*)(\d{1,6})(?=[ \t]*\r\n)", re.IGNORECASE)
_MOST_BYTES = 65_536
"""Of a request's head, and of its body."""


class HttpProtocol(ServerProtocol):
    """Takes the body of a ``POST`` out of what comes in, and gives the library the rest.

    The library hangs up on a request that tells of a body, so it is told of an empty one. A
    head or a body that is too long, and one in chunks, stays as it is and meets that end.

    Args:
        extensions: Those that are offered to the client.
    """

    def __init__(self, extensions: Sequence[ServerExtensionFactory] | None = None) -> None:
        super().__init__(extensions=extensions)
        self.body = b""
        """The request's, once the request is among the events."""
        self._waiting = bytearray()
        self._passes = False

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take bytes of the line; those of a ``POST`` wait until it is whole."""
        if not self._passes:
            self._waiting += data
            self._passes = self._whole()
            if not self._passes:
                return
            data, self._waiting = self._waiting, bytearray()
        super().receive_data(data)

    def _whole(self) -> bool:
        """Whether nothing more needs to come before the library sees what waits."""
        waiting = self._waiting
        if not _POST.startswith(waiting[: len(_POST)]):
            return True
        end = waiting.find(_END)
        if end < 0:
            return len(waiting) > _MOST_BYTES
        end += len(_END)
        told = _LENGTH.search(waiting, 0, end)
        length = int(told[2]) if told else 0
        if told is None or length > _MOST_BYTES or end > _MOST_BYTES:
            return True
        if len(waiting) < end + length:
            return False
        self.body = bytes(waiting[end : end + length])
        # What comes behind the one request of a connection is not listened to.
        self._waiting = waiting[: told.start(2)] + b"0" + waiting[told.end(2) : end]
        return True


@attrs.frozen
class HttpAnswer:
    """What goes back to a plain HTTP request, and after how many seconds.

    One that ``stalls`` is not ended: the client waits for the rest of it.
    """

    response: Response
    delay_s: float = 0.0
    stalls: bool = False


def wants_websocket(request: Request) -> bool:
    """Whether the request asks for an upgrade."""
    return request.headers.get("Upgrade", "").lower() == "websocket"


def too_many_connections() -> HttpAnswer:
    """503."""
    return HttpAnswer(json_response(503, b'{"message":"too many connections."}'))


def json_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer, after which the connection closes."""
    every = Headers(
        {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **(headers or {}),
        }
    )
    return Response(status, http.HTTPStatus(status).phrase, every, body)
