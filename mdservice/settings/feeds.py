"""Facts about Alpaca's feeds: the names of their variants, their URLs and their delays.

Source: Alpaca, "Streaming Market Data", "Real-time Stock Data", "Real-time Crypto Data",
"Real-time Option Data" and "Real-time News".
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from mdservice.model.feeds import FeedName

__all__ = [
    "SIMULATOR",
    "STREAM_HOST",
    "STREAM_PATHS",
    "base_url",
    "feed_delay_s",
    "is_alpacas",
    "stream_base",
    "url_setting",
    "url_variable",
]

SIMULATOR = "simulator"
"""The name of the simulator's feed."""
STREAM_HOST = "wss://stream.data.alpaca.markets"
STREAM_PATHS: Final[dict[FeedName, dict[str, str]]] = {
    "stocks": {
        "iex": "/v2/iex",
        "sip": "/v2/sip",
        "delayed_sip": "/v2/delayed_sip",
        "boats": "/v1beta1/boats",
        "overnight": "/v1beta1/overnight",
        "test": "/v2/test",
    },
    "crypto": {name: f"/v1beta3/crypto/{name}" for name in ("us", "us-1", "eu-1")},
    "options": {name: f"/v1beta1/{name}" for name in ("indicative", "opra")},
    "news": {"news": "/v1beta1/news"},
}
"""The path of each feed's websocket, by the feed and Alpaca's name of its variant."""
_DELAYS_S = {"delayed_sip": 900.0}


def feed_delay_s(feed: str) -> float:
    """The intended delay of the feed's quotes, seconds."""
    return _DELAYS_S.get(feed, 0.0)


def base_url(feed_url: str) -> str:
    """The base of a simulator's REST APIs, which it has on its websocket's port."""
    parts = urlsplit(feed_url)
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"


def stream_base(feed_url: str) -> str:
    """The URL of a websocket without its path: ``wss://stream.data.alpaca.markets``."""
    parts = urlsplit(feed_url)
    return f"{parts.scheme}://{parts.netloc}"


def is_alpacas(url: str) -> bool:
    """Whether the host of a URL is one of Alpaca's, its sandbox included."""
    host = (urlsplit(url).hostname or "").lower()
    return host == "alpaca.markets" or host.endswith(".alpaca.markets")


def url_setting(feed: FeedName) -> str:
    """The setting of a feed's URL: ``feed_url`` or, for instance, ``crypto_url``."""
    return "feed_url" if feed == "stocks" else f"{feed}_url"


def url_variable(feed: FeedName) -> str:
    """Its environment variable: ``MDSERVICE_CRYPTO_URL``."""
    return f"MDSERVICE_{url_setting(feed).upper()}"
