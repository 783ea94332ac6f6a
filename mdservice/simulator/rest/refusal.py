"""How the REST API says no."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

import attrs
import msgspec

__all__ = ["RECENT_SIP", "Call", "Endpoint", "RefusedRequest", "malformed", "refusal_body"]


# A request on its way to an endpoint.


@attrs.frozen
class Call:
    """What an endpoint is asked.

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


@attrs.frozen
class Endpoint:
    """What answers a call with JSON, and with which HTTP status."""

    answer: Callable[[Call], bytes]
    status: int = 200


RECENT_SIP = 42210000
"""The code of history that the plan does not include.

Source: users' reports; its HTTP status was seen as 403 and as 422.
"""
_MALFORMED = 40010001
_BAD_REQUEST = 400


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
