"""Plain HTTP requests on the simulator's port."""

from __future__ import annotations

import http
from collections.abc import Mapping

import attrs
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

__all__ = ["HttpAnswer", "json_response", "too_many_connections", "wants_websocket"]


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
