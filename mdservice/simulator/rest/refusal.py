"""How the REST API says no."""

from __future__ import annotations

from typing import NoReturn

import msgspec

__all__ = ["RECENT_SIP", "RefusedRequest", "malformed", "refusal_body"]

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
