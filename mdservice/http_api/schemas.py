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

    detail: str = Field(
        description="One line for people.",
        examples=["'A PPL' is not a symbol: letters, digits, …"],
    )


class HealthAnswer(Answer):
    """Whether the service is fit, and what is in the way where it is not."""

    ready: bool = Field(description="Fit; the status is 200 then, else 503.")
    reasons: list[str] = Field(
        description="What is in the way; empty where nothing is.",
        examples=[["the feed is not connected"]],
    )


class PriceAnswer(Answer):
    """The latest accepted quote of a symbol. Numbers carry the exact decimal."""

    symbol: str = Field(description="In capitals.", examples=["AAPL"])
    price: float | None = Field(
        description="Mid of bid and ask; the one side where only one is active; null with none.",
        examples=[187.135],
    )
    bid: float = Field(description="Best bid; 0 where none is active.", examples=[187.12])
    ask: float = Field(description="Best offer; 0 where none is active.", examples=[187.15])
    bid_size: float = Field(description="Wanted at the bid.", examples=[2])
    ask_size: float = Field(description="Offered at the ask.", examples=[3])
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

    prices: list[PriceAnswer] = Field(description="In the order asked for, else by symbol.")


class SubscriptionAnswer(Answer):
    """What became of the change. ``pending``: the feed is away; it is made on its return."""

    status: Literal["subscribed", "unsubscribed", "pending"] = Field(description="What was done.")
    symbol: str | None = Field(
        default=None, description="Only where one symbol was asked for.", examples=["AAPL"]
    )
    symbols: list[str] = Field(description="All that were asked for.", examples=[["AAPL"]])


class SubscriptionsAnswer(Answer):
    """The wanted symbols, and who wants each."""

    symbols: list[str] = Field(description="All that are wanted.", examples=[["AAPL"]])
    sources: dict[str, list[str]] = Field(
        description="Who wants each: `api`, `positions`, `settings`.",
        examples=[{"AAPL": ["api", "positions", "settings"]}],
    )
    channels: dict[str, list[str]] = Field(
        description="What the feed has acknowledged on the open connection; empty in an outage. "
        "`*` stands for every symbol.",
        examples=[{"AAPL": ["quotes"]}],
    )
    left_out: dict[str, dict[str, str]] = Field(
        description="What is wanted and the feed does not give, with the reason.",
        examples=[{"MSFT": {"quotes": "symbol limit exceeded"}}],
    )


class HeldPosition(Answer):
    """A position, as its source told it."""

    symbol: str = Field(
        description="In capitals; as its source wrote it where that is no symbol.",
        examples=["AAPL"],
    )
    qty: float | None = Field(
        description="Below 0 for a short position; null where it is unreadable.", examples=[10]
    )
    avg_entry_price: float | None = Field(
        description="Null where it is unreadable.", examples=[150.0]
    )


class ToldPosition(HeldPosition):
    """A position with what else its source told of it."""

    multiplier: float = Field(default=1, description="Only where it is not 1.")
    problem: str | None = Field(default=None, description="Why its price is not followed.")


class PositionsAnswer(Answer):
    """The positions, as their source told them. Numbers carry the exact decimal."""

    positions: list[ToldPosition] = Field(description="In the source's order.")
    warnings: list[str] | None = Field(
        default=None, description="Why they may be out of date; only where they may."
    )


class _Feed(Answer):
    """The connection to the market-data feed."""

    name: str = Field(description="As in the setting `feed`.", examples=["iex"])
    driver: str = Field(
        description="The one in use: `alpaca-py` or `websockets`.", examples=["alpaca-py"]
    )
    phase: str = Field(
        description="`connecting`, `subscribing`, `streaming`, `waiting`, `waiting_for_slot`, "
        "`refused` or `stopped`.",
        examples=["streaming"],
    )
    connected: bool = Field(description="Connected and logged in.")
    subscribed: bool = Field(
        description="Every wanted symbol is acknowledged, or named as left out."
    )
    reconnects: int = Field(description="Connections after the first.")
    last_error: str | None = Field(description="Why the last try or connection ended.")
    wanted: int = Field(description="Symbols asked for.")
    acknowledged: int = Field(description="Of these, acknowledged by the feed.")
    left_out: dict[str, str] = Field(description="Symbols not subscribed, with the reason.")
    other_messages: int = Field(description="Messages that are no quotes, passed over.")
    without_quotes: int = Field(
        description="Symbols without a quote on this connection for longer than the mute limit."
    )
    without_quotes_first: list[str] = Field(description="A hundred of them at most.")
    repairs_refused: dict[str, str] = Field(
        description="Symbols whose missed quotes the REST API refuses, with the reason. "
        "Their gaps stay; they are asked for again after an hour, or when they are subscribed "
        "again.",
        examples=[{"BRK/B": "history was refused with HTTP 400: invalid symbol: BRK/B"}],
    )
    repair_error: str | None = Field(
        description="Why the last repair was refused as a whole.",
        examples=["history was refused with HTTP 403: forbidden."],
    )
    times_frozen_s: float = Field(
        description="For how long quotes have come whose times do not go on."
    )


class _Redis(Answer):
    """The server that the prices go to."""

    connected: bool = Field(description="It answers.")
    url: str = Field(description="Where it is, without any secret.")
    last_error: str | None = Field(description="Why it last did not take what it was sent.")
    backlog: int = Field(description="Events that it has not acknowledged.")
    command_errors: int = Field(description="Commands that failed inside executed writes.")
    last_command_error: str | None = Field(description="The server's words for the last of them.")
    key_prefix: str = Field(
        description="What stands in front of every key, channel and stream name.",
        examples=["desk1:"],
    )


class _Positions(Answer):
    """The positions whose symbols are followed."""

    source: str = Field(
        description="Where they come from, without any secret.",
        examples=["https://paper-api.alpaca.markets/v2/positions"],
    )
    state: Literal["starting", "ok", "degraded"] = Field(
        description="`degraded`: the last try failed, what was known is followed on."
    )
    held: int = Field(description="How many positions there are.")
    followed: int = Field(description="Symbols followed for positions, just closed ones too.")
    left_out: list[str] = Field(description="Those that the feed does not give, largest first.")
    problems: dict[str, str] = Field(description="Positions whose price is not followed.")
    age_s: float | None = Field(description="Since the source last answered.")
    last_error: str | None = Field(description="Why the last try failed.")


class _Inbox(Answer):
    """How full an actor's channel is."""

    used: int = Field(description="Items that wait.")
    size: int = Field(description="Items that it holds; 0 where the actor has none.")


class _Actor(Answer):
    """One actor of the service."""

    state: str = Field(
        description="`starting`, `running`, `restarting`, `stopped` or `failed`.",
        examples=["running"],
    )
    restarts: int = Field(description="Since the start of the service.")
    heartbeat_age_s: float = Field(description="Of the slowest of its loops that does not rest.")
    inbox: _Inbox = Field(description="What waits for it.")
    last_error: str | None = Field(description="Why it was last started anew.")


class _Counters(Answer):
    """Totals since the start, by the names of the metrics, which say what they count."""

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
    history_symbols_refused: int
    prices_fetched: int
    price_fetches_failed: int
    unfollowed: int


class _Latency(Answer):
    """Milliseconds over the last events; null before the first."""

    p50: float | None = Field(description="Half of them took no longer.")
    p99: float | None = Field(description="99 of 100 took no longer.")
    max: float | None = Field(description="The slowest.")


class _Latencies(Answer):
    """Between the exchange's time of a quote, its reception and its write in Redis."""

    feed_to_redis: _Latency = Field(description="From the quote's time to its write.")
    receive_to_redis: _Latency = Field(description="From its reception to its write.")
    feed_to_receive: _Latency = Field(description="From the quote's time to its reception.")


class StatusAnswer(Answer):
    """The condition of the whole service at this moment."""

    state: Literal["starting", "running", "degraded", "draining"] = Field(
        description="`degraded`: not ready after a first login, or the positions are out of date."
    )
    reasons: list[str] = Field(description="What is in the way; empty while it is `running`.")
    feed: _Feed = Field(description="The feed.")
    redis: _Redis = Field(description="The store.")
    symbols: int = Field(description="Symbols that are wanted.")
    uptime_s: float = Field(description="Since the start.")
    actors: dict[str, _Actor] = Field(description="By the actor's name.")
    counters: _Counters = Field(description="What was done so far.")
    latency_ms: _Latencies = Field(description="How long it took, in milliseconds.")
    loop_lag_ms: float = Field(
        description="How late the event loop ran, at most in the last minute."
    )
    positions: _Positions | None = Field(description="Null where no positions are followed.")
    loop_lag_max_ms: float = Field(description="The same since the start.")
    stale_symbols: int = Field(description="Symbols whose price is older than the age limit.")
    simulator: bool = Field(description="The prices are simulated.")
