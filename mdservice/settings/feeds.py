"""Facts about Alpaca's feeds by name: their URLs and their delays.

Source: Alpaca, "Streaming Market Data" and "Real-time Stock Data".
"""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["FEED_URLS", "SIMULATOR", "base_url", "feed_delay_s"]

SIMULATOR = "simulator"
"""The name of the simulator's feed."""
_STREAM_HOST = "wss://stream.data.alpaca.markets"
FEED_URLS = {
    "iex": f"{_STREAM_HOST}/v2/iex",
    "sip": f"{_STREAM_HOST}/v2/sip",
    "delayed_sip": f"{_STREAM_HOST}/v2/delayed_sip",
    "boats": f"{_STREAM_HOST}/v1beta1/boats",
    "overnight": f"{_STREAM_HOST}/v1beta1/overnight",
    "test": f"{_STREAM_HOST}/v2/test",
}
_DELAYS_S = {"delayed_sip": 900.0}


def feed_delay_s(feed: str) -> float:
    """The intended delay of the feed's quotes, seconds."""
    return _DELAYS_S.get(feed, 0.0)


def base_url(feed_url: str) -> str:
    """The base of a simulator's REST APIs, which it has on its websocket's port."""
    parts = urlsplit(feed_url)
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"
