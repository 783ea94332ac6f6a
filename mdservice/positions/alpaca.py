"""The account's positions, from Alpaca's trading API."""

from __future__ import annotations

from mdservice.positions.http import HttpPositions
from mdservice.runtime.network import HttpClient

__all__ = ["AlpacaPositions"]

_CHECK = (
    "check ALPACA_API_KEY, ALPACA_SECRET_KEY and MDSERVICE_TRADING_URL: keys of a live account "
    "need https://api.alpaca.markets, those of a paper account https://paper-api.alpaca.markets"
)


class AlpacaPositions(HttpPositions):
    """A :class:`~mdservice.positions.source.PositionSource` at Alpaca's trading API.

    Source: Alpaca, trading API, ``GET /v2/positions``.

    Args:
        trading_url: ``https://paper-api.alpaca.markets``.
        api_key: Never shown.
        secret_key: Never shown.
        http: Shared with other parts, and closed by its owner; one of its own where not given.

    Raises:
        ConfigurationError: See :class:`~mdservice.positions.http.HttpPositions`.
    """

    def __init__(
        self, trading_url: str, api_key: str, secret_key: str, http: HttpClient | None = None
    ) -> None:
        super().__init__(
            f"{trading_url.rstrip('/')}/v2/positions",
            {"APCA-API-KEY-ID": api_key, "APCA-API-SECRET-KEY": secret_key},
            http,
            check=_CHECK,
        )
