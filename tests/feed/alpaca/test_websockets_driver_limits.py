"""What the raw driver asks of the library."""

from __future__ import annotations

from mdservice.feed.alpaca import websockets_driver as raw


def test_a_late_pong_never_ends_the_pings() -> None:
    """The library sleeps for the interval less the answer's time, which must not be negative."""
    assert raw._PING_TIMEOUT_S < raw._PING_INTERVAL_S
