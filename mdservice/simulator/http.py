"""Plain HTTP requests on the simulator's port."""

from __future__ import annotations

import http

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

__all__ = ["answer", "json_response"]


def answer(request: Request, *, full: bool) -> Response | None:
    """Answer a request; None where it asks for the websocket, which has room for it.

    Args:
        request: The request's line and headers.
        full: No further connection is wanted.
    """
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return json_response(404, '{"message":"endpoint not found."}')
    if full:
        return json_response(503, '{"message":"too many connections."}')
    return None


def json_response(status: int, body: str) -> Response:
    """A JSON answer, after which the connection closes."""
    content = body.encode()
    headers = Headers(
        {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            "Connection": "close",
        }
    )
    return Response(status, http.HTTPStatus(status).phrase, headers, content)
