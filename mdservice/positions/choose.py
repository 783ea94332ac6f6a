"""The source of positions that the settings name."""

from __future__ import annotations

from mdservice.errors import ConfigurationError
from mdservice.network import HttpClient
from mdservice.positions.source import PositionSource
from mdservice.urls import quoted

__all__ = ["open_source"]

_FILE = "file:"


def open_source(
    text: str,
    *,
    trading_url: str,
    api_key: str | None,
    secret_key: str | None,
    http: HttpClient | None = None,
) -> PositionSource | None:
    """The source, which has asked nothing yet; None for ``none``.

    Args:
        text: ``none``, ``alpaca``, an ``http(s)://`` URL or ``file:PATH``.
        trading_url: For ``alpaca``: ``https://paper-api.alpaca.markets``.
        api_key: For ``alpaca``, which needs it; goes nowhere else.
        secret_key: Likewise.
        http: Shared with other parts; the source has one of its own where not given.

    Raises:
        ConfigurationError: The text is none of these, a key is missing, or the environment has
            a proxy or certificates that cannot be used.
    """
    if text == "none":
        return None
    if text == "alpaca":
        return _of_alpaca(trading_url, api_key, secret_key, http)
    if text.startswith(_FILE):
        from mdservice.positions.file import FilePositions

        return FilePositions(text.removeprefix(_FILE))
    if "://" in text:
        from mdservice.positions.http import HttpPositions

        return HttpPositions(text, http=http)
    raise ConfigurationError(
        f"MDSERVICE_POSITIONS: {quoted(text)} is not one of none, alpaca, an http:// or https:// "
        "URL, file:PATH"
    )


def _of_alpaca(
    trading_url: str, api_key: str | None, secret_key: str | None, http: HttpClient | None
) -> PositionSource:
    if not api_key or not secret_key:
        missing = "ALPACA_SECRET_KEY" if api_key else "ALPACA_API_KEY"
        raise ConfigurationError(
            f"positions of alpaca need a key and its secret: set {missing}, or take the positions "
            "from elsewhere with MDSERVICE_POSITIONS"
        )
    from mdservice.positions.alpaca import AlpacaPositions

    return AlpacaPositions(trading_url, api_key, secret_key, http)
