"""Whether the market is open, by Alpaca's clock.

Source: Alpaca, trading API, ``GET /v2/clock``: ``{"is_open": true, "next_close": "…"}``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec

from mdservice.feeds.alpaca.login import Credentials

if TYPE_CHECKING:
    import httpx

__all__ = ["AlpacaMarketClock"]

_TIMEOUT_S = 5.0
_ALWAYS_OPEN = frozenset(("test", "boats", "overnight", "simulator"))
"""Feeds that quote outside the exchange's hours, or invent their quotes."""


class _Clock(msgspec.Struct):
    is_open: bool


class AlpacaMarketClock:
    """The exchange's hours. Without an answer the market counts as open.

    Args:
        base_url: ``https://paper-api.alpaca.markets``.
        feed: Some feeds are always open.
        credentials: Sent as headers.
        transport: In the place of the network, for tests.
    """

    def __init__(
        self,
        base_url: str,
        feed: str,
        credentials: Credentials,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = f"{base_url.rstrip('/')}/v2/clock"
        self._always_open = feed in _ALWAYS_OPEN
        self._headers = credentials.as_headers()
        self._transport = transport

    async def is_open(self) -> bool:
        """Ask; never raises."""
        if self._always_open:
            return True
        import httpx

        client = httpx.AsyncClient(
            timeout=_TIMEOUT_S, headers=self._headers, transport=self._transport
        )
        try:
            with anyio.fail_after(_TIMEOUT_S):
                async with client:
                    answer = await client.get(self._url)
            return msgspec.json.decode(answer.content, type=_Clock).is_open
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, msgspec.DecodeError):
            return True
