"""The bodies of the API's answers, for its OpenAPI description.

The answers themselves are encoded from the service's own models, since a price has to leave
as the exact decimal. Tests hold the answers against these schemas.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Answer",
    "HealthAnswer",
    "HeldPosition",
    "PositionsAnswer",
    "PriceAnswer",
    "PricesAnswer",
    "Problem",
    "StatusAnswer",
    "SubscriptionAnswer",
    "SubscriptionsAnswer",
    "ToldPosition",
]


class Answer(BaseModel):
    """An object without any field but its own."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """Why a request was not carried out, and what to do."""

    detail: str = Field(examples=["'A PPL' is not a symbol: letters, digits, …"])


class HealthAnswer(Answer):
    """Whether the service is fit, and what is in the way where it is not."""

    ready: bool
    reasons: list[str] = Field(examples=[["the feed is not connected"]])


class PriceAnswer(Answer):
    """The latest accepted quote of a symbol. Numbers carry the exact decimal."""

    symbol: str = Field(examples=["AAPL"])
    price: float | None = Field(
        description="Mid of bid and ask; the one side where only one is active; null with none.",
        examples=[187.135],
    )
    bid: float = Field(description="Best bid; 0 where none is active.", examples=[187.12])
    ask: float = Field(description="Best offer; 0 where none is active.", examples=[187.15])
    bid_size: float = Field(examples=[2])
    ask_size: float = Field(examples=[3])
    timestamp: str = Field(
        description="The exchange's time, UTC, RFC 3339 with nanoseconds.",
        examples=["2026-11-20T15:51:44.208912345Z"],
    )
    seq: int = Field(
        description="Which accepted quote of its symbol this is since the start, from 1. "
        "A step of more than one: updates were conflated or missed.",
        examples=[1042],
    )


class PricesAnswer(Answer):
    """The latest prices; symbols without one are left out."""

    prices: list[PriceAnswer]


class SubscriptionAnswer(Answer):
    """What became of the change. ``pending``: the feed is away; it is made on its return."""

    status: Literal["subscribed", "unsubscribed", "pending"]
    symbol: str | None = Field(
        default=None, description="Only where one symbol was asked for.", examples=["AAPL"]
    )
    symbols: list[str] = Field(examples=[["AAPL"]])


class SubscriptionsAnswer(Answer):
    """The wanted symbols, and who wants each."""

    symbols: list[str] = Field(examples=[["AAPL"]])
    sources: dict[str, list[str]] = Field(examples=[{"AAPL": ["api", "positions", "settings"]}])


class HeldPosition(Answer):
    """A position, as its source told it."""

    symbol: str = Field(examples=["AAPL"])
    qty: float | None = Field(
        description="Below 0 for a short position; null where it is unreadable.", examples=[10]
    )
    avg_entry_price: float | None = Field(examples=[150.0])


class ToldPosition(HeldPosition):
    """A position with what else its source told of it."""

    multiplier: float = Field(default=1, description="Only where it is not 1.")
    problem: str | None = Field(default=None, description="Why its price is not followed.")


class PositionsAnswer(Answer):
    """The positions, as their source told them. Numbers carry the exact decimal."""

    positions: list[ToldPosition]
    warnings: list[str] | None = Field(
        default=None, description="Why they may be out of date; only where they may."
    )


class _Feed(Answer):
    name: str = Field(examples=["iex"])
    driver: str = Field(examples=["alpaca-py"])
    phase: str = Field(examples=["streaming"])
    connected: bool
    subscribed: bool
    reconnects: int
    last_error: str | None
    wanted: int
    acknowledged: int
    left_out: dict[str, str] = Field(description="Symbols not subscribed, with the reason.")
    other_messages: int = Field(description="Messages that are no quotes, passed over.")
    without_quotes: int = Field(
        description="Symbols without a quote on this connection for longer than the mute limit."
    )
    without_quotes_first: list[str] = Field(description="A hundred of them at most.")
    times_frozen_s: float = Field(
        description="For how long quotes have come whose times do not go on."
    )


class _Redis(Answer):
    connected: bool
    url: str
    last_error: str | None
    backlog: int
    command_errors: int = Field(description="Commands that failed inside executed writes.")
    last_command_error: str | None


class _Positions(Answer):
    source: str = Field(examples=["https://paper-api.alpaca.markets/v2/positions"])
    state: Literal["starting", "ok", "degraded"]
    held: int
    followed: int = Field(description="Symbols followed for positions, just closed ones too.")
    left_out: list[str] = Field(description="Those that the feed does not give, largest first.")
    problems: dict[str, str] = Field(description="Positions whose price is not followed.")
    age_s: float | None = Field(description="Since the source last answered.")
    last_error: str | None


class _Inbox(Answer):
    used: int
    size: int


class _Actor(Answer):
    state: str = Field(examples=["running"])
    restarts: int
    heartbeat_age_s: float
    inbox: _Inbox
    last_error: str | None


class _Counters(Answer):
    quotes_received: int
    quotes_accepted: int
    quotes_stale: int
    prices_written: int
    events_published: int
    events_conflated: int
    decode_errors: int
    reconnects: int
    gaps: int
    gaps_repaired: int
    quotes_backfilled: int


class _Latency(Answer):
    p50: float | None
    p99: float | None
    max: float | None


class _Latencies(Answer):
    feed_to_redis: _Latency
    receive_to_redis: _Latency
    feed_to_receive: _Latency


class StatusAnswer(Answer):
    """The condition of the whole service at this moment."""

    state: Literal["starting", "running", "degraded", "draining"]
    reasons: list[str]
    feed: _Feed
    redis: _Redis
    symbols: int
    uptime_s: float
    actors: dict[str, _Actor]
    counters: _Counters
    latency_ms: _Latencies
    loop_lag_ms: float
    positions: _Positions | None = Field(description="Null where no positions are followed.")
    loop_lag_max_ms: float
    stale_symbols: int = Field(description="Symbols whose price is older than the age limit.")
    simulator: bool
