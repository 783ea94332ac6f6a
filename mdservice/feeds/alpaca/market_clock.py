"""Whether the market is open, by Alpaca's clock.

Source: Alpaca, trading API, ``GET /v2/clock``: ``{"is_open": true, "next_close": "…"}``.
"""

from __future__ import annotations

import msgspec

from mdservice.feeds.alpaca.login import Credentials

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
    """

    def __init__(self, base_url: str, feed: str, credentials: Credentials) -> None:
        self._url = f"{base_url.rstrip('/')}/v2/clock"
        self._always_open = feed in _ALWAYS_OPEN
        self._headers = credentials.as_headers()

    async def is_open(self) -> bool:
        """Ask; never raises."""
        if self._always_open:
            return True
        import httpx

        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_S, headers=self._headers) as client:
                answer = await client.get(self._url)
            return msgspec.json.decode(answer.content, type=_Clock).is_open
        except (httpx.HTTPError, msgspec.DecodeError):
            return True
