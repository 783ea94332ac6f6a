"""Alpaca's stream errors: the codes and their texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ERROR_TEXTS", "error_message"]

ERROR_TEXTS: Mapping[int, str] = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    408: "v2 not enabled",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
    411: "insufficient scope",
    412: "option messages are only available in MsgPack format",
    413: "star subscription is not allowed for option quotes",
    500: "internal error",
}
"""Source: Alpaca's streaming documentation; 412 and 413 are worded from its description."""


def error_message(code: int) -> dict[str, Any]:
    """``{"T": "error", "code": 406, "msg": "connection limit exceeded"}``.

    A code that Alpaca does not document gets the text ``error``.
    """
    return {"T": "error", "code": code, "msg": ERROR_TEXTS.get(code, "error")}
