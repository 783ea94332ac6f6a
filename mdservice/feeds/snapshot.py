"""The feed connection at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

__all__ = ["FeedSnapshot"]


@attrs.frozen
class FeedSnapshot:
    """The connection at one moment; the names are those of ``/status``."""

    phase: str
    driver: str
    connected: bool
    subscribed: bool
    logins: int
    reconnects: int
    last_error: str | None
    wanted: int
    acknowledged: int
    left_out: dict[str, str]
    quotes_received: int
    decode_errors: int
    unfollowed: int
    other_messages: int
    without_quotes: Sequence[str]
    history_refused: str | None
    history_set_aside: Mapping[str, str]
    history_symbols_refused: int
