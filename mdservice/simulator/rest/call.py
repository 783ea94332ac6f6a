"""A request on its way to an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

__all__ = ["Call", "Endpoint"]


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
