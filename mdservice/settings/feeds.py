"""What is known of Alpaca's feeds by their names: where they stream, how late they are.

Source: Alpaca, "Streaming Market Data" and "Real-time Stock Data".
"""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["FEED_URLS", "SIMULATOR", "base_url", "feed_delay_s"]

SIMULATOR = "simulator"
"""The feed's name when it is the simulator."""
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
    """By how much the feed's quotes are late by design, seconds."""
    return _DELAYS_S.get(feed, 0.0)


def base_url(feed_url: str) -> str:
    """The base of a simulator's REST APIs, which it has on its websocket's port."""
    parts = urlsplit(feed_url)
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"
