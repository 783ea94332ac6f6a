"""Plain HTTP on the simulator's port: requests as h11 reads them, answers, and refusals."""

from __future__ import annotations

import http
from collections.abc import Callable, Mapping
from typing import NoReturn

import attrs
import h11
import msgspec
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

__all__ = [
    "RECENT_SIP",
    "RECENT_SIP_MESSAGE",
    "Answer",
    "Call",
    "Endpoint",
    "HttpAnswer",
    "RefusedRequest",
    "RequestReader",
    "json_response",
    "malformed",
    "refusal_body",
    "too_many_connections",
    "wants_websocket",
]

_MOST_BYTES = 65_536
"""Of a request's head, and of its body."""

RECENT_SIP = 42210000
"""The code of history that the plan does not include.

Source: users' reports; its HTTP status was seen as 403 and as 422.
"""
RECENT_SIP_MESSAGE = "subscription does not permit querying recent SIP data"
_MALFORMED = 40010001
_BAD_REQUEST = 400


class RequestReader:
    """Reads the one request of a connection, with a body or an upgrade or neither."""

    def __init__(self) -> None:
        self.body = bytearray()
        """The request's, whole once the request is."""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_BYTES)
        self._request: Request | None = None

    @property
    def rest(self) -> bytes:
        """What came behind the request: frames of a client that did not wait for the upgrade."""
        return self._http.trailing_data[0]

    def receive(self, data: bytes) -> Request | None:
        """Take bytes of the connection; the request once it is whole.

        Raises:
            h11.RemoteProtocolError: This is not HTTP, or more than 64 KiB.
        """
        self._http.receive_data(data)
        while True:
            match self._http.next_event():
                case h11.Request() as event:
                    self._request = Request(
                        event.target.decode(),
                        Headers(
                            (name.decode("latin-1"), value.decode("latin-1"))
                            for name, value in event.headers.raw_items()
                        ),
                        event.method.decode(),
                        f"HTTP/{event.http_version.decode()}",
                    )
                case h11.Data(data=part):
                    self.body += part
                    if len(self.body) > _MOST_BYTES:
                        raise h11.RemoteProtocolError(f"more than {_MOST_BYTES} bytes of body")
                case h11.EndOfMessage():
                    return self._request
                case _:
                    return None


@attrs.frozen
class HttpAnswer:
    """The answer to a plain HTTP request, and its delay in seconds.

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


@attrs.frozen
class Call:
    """A request to an endpoint.

    Attributes:
        params: The query's parameters.
        now_ns: UTC nanoseconds.
        name: What stands in the path behind the endpoint's own, ``AAPL``; or nothing.
        body: The request's.
    """

    params: Mapping[str, str]
    now_ns: int
    name: str = ""
    body: bytes = b""


Answer = Callable[[Call], bytes]
"""Answers a call with JSON."""


@attrs.frozen
class Endpoint:
    """What answers a call with JSON, and with which HTTP status."""

    answer: Answer
    status: int = 200


class RefusedRequest(Exception):
    """A request that gets no data.

    Args:
        status: HTTP status.
        code: Alpaca's number, 0 for none.
        message: Alpaca's text.
    """

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def body(self) -> bytes:
        """The answer's JSON."""
        return refusal_body(self.code, self.message)


def malformed(message: str) -> NoReturn:
    """Refuse a request whose parameters cannot be understood.

    Raises:
        RefusedRequest: Always, 400.
    """
    raise RefusedRequest(_BAD_REQUEST, _MALFORMED, message)


def refusal_body(code: int, message: str) -> bytes:
    """``{"code":42210000,"message":"…"}``, without the code where it is 0."""
    return msgspec.json.encode({"code": code, "message": message} if code else {"message": message})
