"""Whether the market is open, by Alpaca's clock.

Source: Alpaca, trading API, ``GET /v2/clock``: ``{"is_open": true, "next_close": "…"}``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec

from mdservice.feeds.alpaca.login import Credentials
from mdservice.logs import get_logger
from mdservice.network import HttpAnswer, HttpClient, HttpFailed
from mdservice.urls import mask_url

if TYPE_CHECKING:
    import httpx

__all__ = ["AlpacaMarketClock", "clock_refusal"]

_log = get_logger(__name__)

_TIMEOUT_S = 5.0
_MOST_BYTES = 64 * 1024
_OK, _SERVER_ERROR = 200, 500
_KEYS_REFUSED = (401, 403)
_BUSY = (408, 425, 429)
_ALWAYS_OPEN = frozenset(("test", "boats", "overnight", "simulator"))
"""Feeds that quote outside the exchange's hours, or invent their quotes."""


class _Clock(msgspec.Struct):
    is_open: bool


def clock_refusal(status: int) -> str:
    """What to do about an answer of the trading API that is no success."""
    if status in _KEYS_REFUSED:
        return (
            "check ALPACA_API_KEY, ALPACA_SECRET_KEY and MDSERVICE_TRADING_URL: keys of a live "
            "account need https://api.alpaca.markets, those of a paper account "
            "https://paper-api.alpaca.markets"
        )
    return (
        "set MDSERVICE_TRADING_URL to the base of the trading API: https://api.alpaca.markets, "
        "or https://paper-api.alpaca.markets for a paper account"
    )


class AlpacaMarketClock:
    """The exchange's hours. Without an answer the market counts as open, which is logged once.

    Args:
        base_url: ``https://paper-api.alpaca.markets``.
        feed: Some feeds are always open.
        credentials: Sent as headers.
        transport: In the place of the network, for tests.
        http: Shared with other parts, and closed by its owner.

    Attributes:
        refused: Why the hours are not known and will not be until a setting changes, or None.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        feed: str,
        credentials: Credentials,
        transport: httpx.AsyncBaseTransport | None = None,
        http: HttpClient | None = None,
    ) -> None:
        self.refused: str | None = None
        self._url = f"{base_url.rstrip('/')}/v2/clock"
        self._shown = mask_url(self._url)
        self._always_open = feed in _ALWAYS_OPEN
        self._headers = credentials.as_headers()
        self._http = http or HttpClient(transport)
        self._logged: str | None = None
        if not self._always_open:
            self._http.prepare(self._url)

    async def is_open(self) -> bool:
        """Ask; never raises."""
        if self._always_open:
            return True
        try:
            with anyio.fail_after(_TIMEOUT_S):
                answer = await self._http.get(
                    self._url,
                    headers=self._headers,
                    timeout_s=_TIMEOUT_S,
                    most_bytes=_MOST_BYTES,
                )
        except HttpFailed as exc:
            return self._unknown(f"{self._shown}: {exc}")
        except TimeoutError:
            return self._unknown(f"{self._shown} does not answer within {_TIMEOUT_S:g} s")
        return self._read(answer)

    def _read(self, answer: HttpAnswer) -> bool:
        status = answer.status
        if status != _OK:
            reason = f"{self._shown} answers HTTP {status}"
            if status >= _SERVER_ERROR or status in _BUSY:
                return self._unknown(reason)
            return self._unknown(f"{reason}: {clock_refusal(status)}", refused=True)
        try:
            is_open = msgspec.json.decode(answer.body, type=_Clock).is_open
        except msgspec.DecodeError:
            return self._unknown(
                f"{self._shown} does not answer as Alpaca's clock does: {clock_refusal(status)}",
                refused=True,
            )
        if self._logged is not None:
            _log.info("market_hours_known", url=self._shown)
        self.refused = self._logged = None
        return is_open

    def _unknown(self, reason: str, *, refused: bool = False) -> bool:
        if reason != self._logged:
            _log.warning("market_hours_unknown", reason=reason, market="counts as open")
        self._logged = reason
        self.refused = reason if refused else None
        return True
