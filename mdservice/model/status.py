"""The service's condition at one moment, as ``/status`` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import attrs

if TYPE_CHECKING:
    from cattrs import Converter

__all__ = [
    "ActorReport",
    "Counters",
    "FeedReport",
    "Inbox",
    "Latencies",
    "Latency",
    "PositionsReport",
    "Readiness",
    "RedisReport",
    "ServiceState",
    "Status",
    "status_to_json",
]

ServiceState = Literal["starting", "running", "degraded", "draining"]


@attrs.frozen
class Readiness:
    """Whether the service can be relied on, and what is in the way where it cannot."""

    ready: bool
    reasons: tuple[str, ...] = ()


@attrs.frozen
class FeedReport:
    """The feed's side.

    Attributes:
        name: The feed as set (``iex``).
        driver: The driver in use (``alpaca-py`` or ``websockets``).
        phase: What the connection is doing: ``connecting``, ``subscribing``, ``streaming``,
            ``waiting`` (for the next try), ``waiting_for_slot``, ``refused``, ``stopped``.
        connected: Authenticated, and the socket is open.
        subscribed: Every wanted symbol has been acknowledged or named as left out.
        reconnects: Connections after the first.
        last_error: Why the last attempt or connection ended, or None.
        wanted: How many symbols are asked for.
        acknowledged: How many of them the feed has acknowledged.
        left_out: Symbols that the feed does not give, each with the reason.
        other_messages: Messages that are no quotes and were passed over.
        without_quotes: How many symbols have had no quote on this connection, for longer than
            the mute limit since they were acknowledged. In a quiet market that is right.
        without_quotes_first: The first of them by name, a hundred at most.
        repairs_refused: Symbols whose missed quotes history refuses, each with the reason: their
            gaps stay.
        repair_error: Why history refused the last repair as a whole, or None.
        times_frozen_s: For how long quotes have come whose times no longer go on; 0 where they do.
    """

    name: str
    driver: str
    phase: str
    connected: bool
    subscribed: bool
    reconnects: int
    last_error: str | None
    wanted: int = 0
    acknowledged: int = 0
    left_out: Mapping[str, str] = attrs.field(factory=dict)
    other_messages: int = 0
    without_quotes: int = 0
    without_quotes_first: tuple[str, ...] = ()
    repairs_refused: Mapping[str, str] = attrs.field(factory=dict)
    repair_error: str | None = None
    times_frozen_s: float = 0.0


@attrs.frozen
class RedisReport:
    """The store's side.

    Attributes:
        connected: It answers.
        url: Where it is, without any secret.
        last_error: Why it last did not take what it was sent, or None.
        backlog: Events that it has not acknowledged.
        command_errors: Commands that failed inside executed writes, such as appending to an
            event log whose key is no stream.
        last_command_error: The server's words for the last of them.
        key_prefix: What stands in front of every key, channel and stream name.
    """

    connected: bool
    url: str
    last_error: str | None
    backlog: int = 0
    command_errors: int = 0
    last_command_error: str | None = None
    key_prefix: str = ""


@attrs.frozen
class PositionsReport:
    """The positions whose symbols are followed.

    Attributes:
        source: Where they come from, without any secret.
        state: ``starting`` before the first answer, ``ok``, or ``degraded`` where the last try
            failed: then what was known before is followed on.
        held: How many positions there are.
        followed: How many symbols are followed for them, just closed ones included.
        left_out: Those of them that the feed does not give, the largest position first.
        problems: Positions whose price is not followed, by symbol, with the reason.
        age_s: Seconds since the source last answered; None before that.
        last_error: Why the last try failed, or None.
    """

    source: str
    state: Literal["starting", "ok", "degraded"]
    held: int
    followed: int
    left_out: tuple[str, ...]
    problems: Mapping[str, str]
    age_s: float | None
    last_error: str | None


@attrs.frozen
class Inbox:
    """How full a channel is."""

    used: int
    size: int


@attrs.frozen
class ActorReport:
    """One actor: ``state`` is starting, running, restarting, stopped or failed."""

    state: str
    restarts: int
    heartbeat_age_s: float
    inbox: Inbox
    last_error: str | None = None


@attrs.frozen
class Counters:
    """Totals since the service started; metrics have the same names."""

    quotes_received: int = 0
    quotes_accepted: int = 0
    quotes_stale: int = 0
    prices_written: int = 0
    events_published: int = 0
    events_conflated: int = 0
    decode_errors: int = 0
    reconnects: int = 0
    gaps: int = 0
    gaps_repaired: int = 0
    quotes_backfilled: int = 0
    history_symbols_refused: int = 0
    prices_fetched: int = 0
    price_fetches_failed: int = 0
    unfollowed: int = 0


@attrs.frozen
class Latency:
    """Milliseconds over the last events; None before the first."""

    p50: float | None = None
    p99: float | None = None
    max: float | None = None


@attrs.frozen
class Latencies:
    """From the quote's own time, and from its reception, to its acknowledged write.

    ``feed_to_receive`` is how far the receiving lags behind the exchange's times.
    """

    feed_to_redis: Latency = Latency()
    receive_to_redis: Latency = Latency()
    feed_to_receive: Latency = Latency()


@attrs.frozen
class Status:
    """Everything that ``/status`` tells.

    Attributes:
        positions: None where no positions are followed.
        stale_symbols: How many symbols have a last quote older than the price age limit.
        loop_lag_ms: How late the event loop ran what was due, at most in the last minute.
        loop_lag_max_ms: The same since the start.
    """

    state: ServiceState
    reasons: tuple[str, ...]
    feed: FeedReport
    redis: RedisReport
    symbols: int
    uptime_s: float
    actors: Mapping[str, ActorReport]
    counters: Counters
    latency_ms: Latencies
    loop_lag_ms: float
    positions: PositionsReport | None = None
    loop_lag_max_ms: float = 0.0
    stale_symbols: int = 0
    simulator: bool = False


def status_to_json(status: Status) -> dict[str, Any]:
    """The status as plain JSON types, as ``/status`` tells it."""
    plain: dict[str, Any] = _converter().unstructure(status)
    return plain


@cache
def _converter() -> Converter:
    """Made when first needed: an embedder who never asks does not pay for the import."""
    from cattrs.preconf.json import make_converter

    return make_converter(unstruct_collection_overrides={tuple: list})
