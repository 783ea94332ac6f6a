"""The service's status at one moment, as ``/status`` shows it.

A field is declared here, once: its name, its type and what it means. The JSON of ``/status``, its
schema in the OpenAPI description and the reference follow from that. A field of :class:`Counters`
also says which part counts it, and becomes a metric automatically.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import attrs

if TYPE_CHECKING:
    from cattrs import Converter

__all__ = [
    "ActorReport",
    "ChannelCounters",
    "Counters",
    "FeedPhase",
    "FeedReport",
    "Histogram",
    "Inbox",
    "JournalProblem",
    "JournalStatus",
    "Latencies",
    "Latency",
    "NativeBuckets",
    "PositionsReport",
    "Readiness",
    "RedisReport",
    "RelayClass",
    "RelayClassReport",
    "RelayClient",
    "RelayStatus",
    "ServiceState",
    "StandbyReport",
    "Status",
    "TradeUpdatesReport",
    "status_to_json",
]

ServiceState = Literal["starting", "running", "degraded", "draining", "standby"]
FeedPhase = Literal[
    "idle",
    "connecting",
    "subscribing",
    "streaming",
    "waiting",
    "waiting_for_slot",
    "refused",
    "stopped",
]


def _shown(
    meaning: str,
    *,
    default: Any = attrs.NOTHING,
    factory: Any = None,
    example: Any = None,
    omitted: bool = False,
    metric: Literal["counter", "gauge"] | None = None,
) -> Any:
    """A field of the status.

    Args:
        meaning: Its description for readers of ``/status``.
        default: Its default value.
        factory: Makes the default, in place of ``default``.
        example: A value for the description of the API.
        omitted: Whether the JSON has the field only where it is not None.
        metric: Whether it is also a metric, and of which type. The metric has the same meaning,
            and is named after the report and the field.
    """
    metadata = {
        "meaning": meaning,
        "examples": None if example is None else [example],
        "omitted": omitted,
        "metric": metric,
    }
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


def _counter(meaning: str, *counted_by: str) -> Any:
    """A counter, from 0 at the start; the metric ``mdservice_<name>_total`` has the same meaning.

    Args:
        meaning: What it counts.
        counted_by: The part of the service that counts it: ``feed``, ``router``, ``publisher``,
            ``first_prices`` or ``trade_updates``. Its snapshot has the number under the counter's
            name, or under the name after a dot. The counter is the sum over all named parts.
    """
    return attrs.field(
        default=0,
        metadata={
            "meaning": meaning,
            "examples": None,
            "omitted": False,
            "counted_by": counted_by,
        },
    )


def _only_measured(meaning: str, metric: Literal["counter", "gauge"]) -> Any:
    """A field that is a metric, and not in the JSON."""
    metadata = {"meaning": meaning, "metric": metric, "metrics_only": True, "omitted": False}
    return attrs.field(default=0, metadata=metadata)


@attrs.frozen
class Readiness:
    """Whether the service is ready (or alive), and the reasons if it is not."""

    ready: bool
    reasons: tuple[str, ...] = ()


@attrs.frozen
class FeedReport:
    """The connection to the market-data feed."""

    name: str = _shown("Alpaca's name of it, as in the settings.", example="iex")
    driver: str = _shown("The one in use: `alpaca-py` or `websockets`.", example="alpaca-py")
    phase: FeedPhase = _shown(
        "`idle` (nothing is wanted of it, or the service stands by), `connecting`, `subscribing`, "
        "`streaming`, `waiting`, `waiting_for_slot`, `refused` or `stopped`.",
        example="streaming",
    )
    connected: bool = _shown("Connected and logged in.")
    subscribed: bool = _shown("Every wanted symbol is acknowledged, or named as left out.")
    reconnects: int = _shown("Connections after the first.", metric="counter")
    last_error: str | None = _shown("Why the last attempt or connection ended.")
    wanted: int = _shown("Symbols asked for.", default=0, metric="gauge")
    acknowledged: int = _shown("Of these, acknowledged by the feed.", default=0, metric="gauge")
    left_out: Mapping[str, str] = _shown(
        "Symbols not subscribed, with the reason. If only some channels of a symbol are missing, "
        "it begins with their names.",
        factory=dict,
    )
    other_messages: int = _shown(
        "Messages other than quotes, ignored.", default=0, metric="counter"
    )
    without_quotes: int = _shown(
        "Symbols without a quote on this connection for longer than MDSERVICE_MUTE_AFTER.",
        default=0,
        metric="gauge",
    )
    without_quotes_first: tuple[str, ...] = _shown("A hundred of them at most.", default=())
    repairs_refused: Mapping[str, str] = _shown(
        "Symbols whose missed quotes the REST API refuses, with the reason. "
        "Their gaps stay; they are asked for again after an hour, or when they are subscribed "
        "again.",
        factory=dict,
        example={"BRK/B": "history was refused with HTTP 400: invalid symbol: BRK/B"},
    )
    repair_error: str | None = _shown(
        "Why the last repair was refused as a whole.",
        default=None,
        example="history was refused with HTTP 403: forbidden.",
    )
    times_frozen_s: float = _shown(
        "How long the exchange times of incoming quotes have stood still.",
        default=0.0,
        metric="gauge",
    )
    received: Mapping[str, int] = _shown(
        "Records that came over the websocket, by channel.",
        factory=dict,
        example={"quotes": 1042, "trades": 160},
    )
    silent: int = _shown(
        "Connections closed because they brought nothing although the market was not quiet.",
        default=0,
        metric="counter",
    )
    silent_symbols: int = _shown(
        "Symbols that the stream had stopped sending although others came: REST had newer records. "
        "They are counted again at each check, once a minute.",
        default=0,
        metric="counter",
    )
    decode_errors: int = _shown(
        "Its messages that could not be read, or broke the schema.", default=0, metric="counter"
    )
    gaps: int = _shown(
        "Its reported gaps: quotes were missing, or may have been.", default=0, metric="counter"
    )
    gaps_repaired: int = _shown("Of these, filled from the history.", default=0, metric="counter")
    clock_behind_s: float | None = _shown(
        "How far this machine's clock is behind the feed's, while that makes the service refuse "
        "most of its quotes.",
        default=None,
        metric="gauge",
    )


@attrs.frozen
class RedisReport:
    """The Redis server that stores the prices."""

    connected: bool = _shown("It answers.")
    url: str = _shown("Its URL, without any secret.")
    last_error: str | None = _shown("Why the last failed write or connection failed.")
    backlog: int = _shown("Events that it has not acknowledged.", default=0)
    command_errors: int = _shown(
        "Commands that failed inside executed writes, and events that its user may not write.",
        default=0,
    )
    last_command_error: str | None = _shown(
        "The server's message for the last of them.", default=None
    )
    key_prefix: str = _shown(
        "The prefix of every key, channel and stream name.", default="", example="desk1:"
    )
    backlog_limit: int = _shown(
        "As many events are kept in order; of more, the oldest are conflated or dropped.",
        default=0,
        example=100_000,
    )
    refusal: str | None = _shown(
        "The code of the error with which it refuses to write; null while it does not.",
        default=None,
        example="READONLY",
    )


@attrs.frozen
class TradeUpdatesReport:
    """The stream of the account's trade updates, by which fills change positions at once."""

    url: str = _shown(
        "Its URL, without any secret.", example="wss://paper-api.alpaca.markets/stream"
    )
    state: Literal["connecting", "following", "waiting", "refused"] = _shown(
        "`following`: logged in. `waiting`: lost, until the next try. `refused`: tried again "
        "slowly, while positions are asked for as before.",
        example="following",
    )
    reconnects: int = _shown("Connections after the first.")
    last_error: str | None = _shown("Why the last one ended; null while it is followed.")


@attrs.frozen
class PositionsReport:
    """The positions whose symbols are followed."""

    source: str = _shown(
        "Where they come from, without any secret.",
        example="https://paper-api.alpaca.markets/v2/positions",
    )
    state: Literal["starting", "ok", "degraded"] = _shown(
        "`degraded`: the last try failed; the last known positions are still followed."
    )
    held: int = _shown("How many positions there are.")
    followed: int = _shown("Symbols followed for positions, including those just closed.")
    left_out: tuple[str, ...] = _shown("Those that the feed does not give, largest first.")
    problems: Mapping[str, str] = _shown("Positions whose price is not followed.")
    age_s: float | None = _shown("Seconds since the source last answered.")
    last_error: str | None = _shown("Why the last try failed.")
    differences: tuple[str, ...] = _shown(
        "What the source's answer has corrected in the last minute: quantities that it has and the "
        "fills of the stream had not.",
        default=(),
    )
    updates: TradeUpdatesReport | None = _shown(
        "The stream of trade updates; null where the positions are not Alpaca's.", default=None
    )


@attrs.frozen
class RelayClient:
    """A program that is connected to the relay."""

    name: str = _shown(
        "The `User-Agent` of its program, with a number.",
        example="APCA-PY/0.44.0 Python/3.11.7 (3)",
    )
    address: str = _shown("Where it connects from.", example="127.0.0.1:50412")
    path: str = _shown("The stream that it connected to.", example="/v2/iex")
    encoding: Literal["json", "msgpack"] = _shown("The encoding of its messages.")
    connected_s: float = _shown("Seconds since it connected.")
    symbols: int = _shown("Subscribed pairs of a channel and a symbol.")
    sent: int = _shown("Messages sent to it.")
    rate: float = _shown("Messages a second, recently.")
    backlog: int = _shown("Messages that wait for it.")
    conflated: int = _shown(
        "Messages dropped because it was slow and a newer one of their symbol replaced them."
    )


RelayClass = Literal["local", "remote"]
"""Where a client of the relay runs: on this machine, or on another."""


@attrs.frozen
class RelayClassReport:
    """The clients of the relay that run on this machine, or on others."""

    clients: int = _shown(
        "Clients of this class that are connected now.", default=0, metric="gauge"
    )
    cut: int = _shown(
        "Clients of this class that were cut off because they were too slow.",
        default=0,
        metric="counter",
    )
    messages: int = _shown("Messages sent to them.", default=0, metric="counter")
    conflated: int = _shown(
        "Messages to slow ones of them, dropped for newer ones.", default=0, metric="counter"
    )


@attrs.frozen
class RelayStatus:
    """The relay: Alpaca's streams, served to other programs."""

    address: str = _shown("Where it listens.", example="127.0.0.1:8765")
    clients: tuple[RelayClient, ...] = _shown("Those connected now, in the order of connecting.")
    cut: int = _shown(
        "Clients cut off since the start because they were too slow.", metric="counter"
    )
    messages: int = _shown("Messages sent to all clients since the start.", metric="counter")
    conflated: int = _shown(
        "Messages to slow clients dropped since the start, likewise.", metric="counter"
    )
    classes: Mapping[RelayClass, RelayClassReport] = attrs.field(
        factory=dict, metadata={"metrics_only": True}
    )
    """The same for each class of clients; in the metrics, not in the JSON."""


JournalProblem = Literal["full", "failing", "stuck", "slow"]
"""Why a journal is not complete."""


@attrs.frozen
class JournalStatus:
    """The journal: what came from the feeds, recorded as it came."""

    folder: str = _shown("Where its files are.", example="/var/lib/mdservice/journal")
    written: int = _shown("Messages of the feeds recorded since the start.", metric="counter")
    dropped: int = _shown(
        "Messages not recorded since the start, because the disk was too slow.", metric="counter"
    )
    waiting_bytes: int = _shown("Bytes that wait for the disk.", metric="gauge")
    bytes: int = _shown("The size of its files.", metric="gauge")
    last_error: str | None = _shown("Why the journal is not complete now; null while it is.")
    problem: JournalProblem | None = _shown(
        "The kind of `last_error`: the disk is `full`, refuses writes (`failing`), does not answer "
        "(`stuck`) or was too `slow`; null without one.",
        default=None,
    )
    failures: int = _shown(
        "Writes that failed since the start; each is tried again.", default=0, metric="counter"
    )


@attrs.frozen
class StandbyReport:
    """The standby group of this service."""

    group: str = _shown("Its name, MDSERVICE_GROUP.", example="desk1")
    leader: str | None = _shown(
        "Which service leads, this one included; null while none does.",
        example="trader1 (process 4711)",
    )
    epoch: int = _shown("The number of its term; it only grows.", metric="gauge")
    since: str | None = _shown(
        "Since when it leads, RFC 3339.", example="2026-11-20T15:51:44.208912345Z"
    )
    leads: bool = _only_measured("1 while this service leads its group.", "gauge")
    standby_alive: bool = _only_measured(
        "1 while this service leads and a standby is alive, or stands by itself.", "gauge"
    )
    terms: int = _only_measured("How often this service has begun to lead.", "counter")
    dropped: int = _only_measured(
        "Events dropped when this service stopped leading; the next leader repairs them.", "counter"
    )


@attrs.frozen
class Inbox:
    """How many items are in an actor's channel."""

    used: int = _shown("Items that wait.")
    size: int = _shown("Items that it holds; 0 where the actor has none.")


@attrs.frozen
class ActorReport:
    """One actor of the service."""

    state: str = _shown(
        "`starting`, `running`, `restarting`, `stopped` or `failed`.", example="running"
    )
    restarts: int = _shown("Restarts since the start of the service.", metric="counter")
    heartbeat_age_s: float = _shown(
        "Seconds since the oldest heartbeat of its loops; resting loops do not count.",
        metric="gauge",
    )
    inbox: Inbox = _shown("The channel that it reads.")
    last_error: str | None = _shown("Why it was last restarted.", default=None)
    stalls: int = _shown(
        "Of the restarts, those because its loops no longer moved.", default=0, metric="counter"
    )


@attrs.frozen
class Counters:
    """Totals since the start. Each is also a metric, `mdservice_<name>_total`."""

    quotes_received: int = _counter("Quotes that came over the websocket.", "feed")
    quotes_accepted: int = _counter(
        "Quotes that were not older than their symbol's last one.", "router"
    )
    quotes_stale: int = _counter(
        "Quotes rejected: older than their symbol's last one, or its repeat.", "router"
    )
    prices_written: int = _counter("Prices that Redis acknowledged.", "publisher")
    events_published: int = _counter("Events that Redis acknowledged.", "publisher")
    events_conflated: int = _counter(
        "Events dropped because a newer one of their symbol replaced them.", "publisher"
    )
    decode_errors: int = _counter(
        "Messages that could not be read, or broke the schema.", "feed", "router.future_records"
    )
    reconnects: int = _counter("Connections to the feed after the first.", "feed")
    gaps: int = _counter("Reported gaps: quotes were missing, or may have been.", "router")
    gaps_repaired: int = _counter("Gaps filled from the history.", "router")
    quotes_backfilled: int = _counter("Quotes that came by REST.", "router")
    history_symbols_refused: int = _counter(
        "Symbols that REST refused, and that are left out of repairs.", "feed"
    )
    prices_fetched: int = _counter("First prices of newly subscribed symbols, from REST.", "router")
    price_fetches_failed: int = _counter(
        "Symbols without a first price from REST after all tries.", "first_prices.failed"
    )
    unfollowed: int = _counter(
        "Quotes dropped: symbol not subscribed, or beyond the 50,000 symbols of `*`.", "feed"
    )
    trades_dropped: int = _counter(
        "Events of trades dropped because the backlog was full.", "publisher"
    )
    trade_updates_received: int = _counter(
        "Events that came on the trading stream.", "trade_updates.received"
    )
    trade_updates_applied: int = _counter(
        "Events of the trading stream that changed a position.", "trade_updates.applied"
    )
    trade_updates_late: int = _counter(
        "Events of the trading stream that changed nothing: repeated, late, or in the last answer "
        "of the positions' source already.",
        "trade_updates.late",
    )
    trade_updates_unreadable: int = _counter(
        "Messages of the trading stream that could not be used.", "trade_updates.unreadable"
    )
    trade_updates_unknown: int = _counter(
        "Events of the trading stream of an unknown kind.", "trade_updates.unknown"
    )
    position_differences: int = _counter(
        "Quantities that the positions' source had and the trading stream had not.",
        "trade_updates.differed",
    )
    account_updates_published: int = _counter(
        "Events on `account.updated` that Redis acknowledged.", "publisher"
    )
    account_updates_dropped: int = _counter(
        "Events for `account.updated` dropped because the backlog was full.", "publisher"
    )


@attrs.frozen
class ChannelCounters:
    """Totals of one channel since the start, of all feeds together.

    Each is also a metric with the label `channel`, `mdservice_records_<name>_total`. Bars and
    updated bars are counted together, under `bars`.
    """

    received: int = _counter("Records that came over the websocket.", "feed.records_received")
    accepted: int = _counter("Records that were accepted.", "router")
    rejected: int = _counter("Repeats, and records older than their kind accepts.", "router")
    backfilled: int = _counter("Records that a repair brought by REST.", "router")
    fetched: int = _counter("First values of newly subscribed symbols, from REST.", "router")
    published: int = _counter("Events that Redis acknowledged.", "publisher")
    conflated: int = _counter(
        "Events dropped because a newer one of their symbol replaced them.", "publisher"
    )
    dropped: int = _counter("Events dropped that nothing replaces.", "publisher")


@attrs.frozen
class Latency:
    """Milliseconds over the last events; null before the first."""

    p50: float | None = _shown("Half of them took no longer.", default=None)
    p99: float | None = _shown("99 of 100 took no longer.", default=None)
    max: float | None = _shown("The slowest.", default=None)


@attrs.frozen
class Latencies:
    """Between the exchange's time of a quote, its reception and its write in Redis."""

    feed_to_redis: Latency = _shown("From the quote's time to its write.", default=Latency())
    receive_to_redis: Latency = _shown("From its reception to its write.", default=Latency())
    feed_to_receive: Latency = _shown("From the quote's time to its reception.", default=Latency())


@attrs.frozen
class NativeBuckets:
    """The buckets of a Prometheus native histogram.

    Attributes:
        counts: How many durations each bucket has, by its number, without empty ones. Bucket ``n``
            ends with ``2 ** (n / 2 ** schema)`` seconds, and begins where ``n - 1`` ends.
        schema: See ``counts``; with 3, each bucket is 9 % wider than the one below.
        zero_threshold_s: Shorter durations are in no bucket.
    """

    counts: Mapping[int, int] = attrs.field(factory=dict)
    schema: int = 3
    zero_threshold_s: float = 2.0**-20


@attrs.frozen
class Histogram:
    """Durations since the start, as Prometheus counts them.

    Attributes:
        counts: How many took no longer than each bound, in seconds; the last bound is infinity.
        sum_s: Their sum, seconds.
        native: The same durations in finer buckets.
    """

    counts: Mapping[float, int]
    sum_s: float
    native: NativeBuckets = NativeBuckets()


@attrs.frozen
class Status:
    """The status of the whole service at this moment."""

    state: ServiceState = _shown(
        "`degraded`: not ready after a first login, or the positions are out of date. `standby`: "
        "another service of the group leads."
    )
    reasons: tuple[str, ...] = _shown("Why it is not `running`; empty while it is.")
    feed: FeedReport = _shown("The stock feed.")
    redis: RedisReport = _shown("The store.")
    symbols: int = _shown("The number of wanted symbols.")
    uptime_s: float = _shown("Seconds since the start.")
    actors: Mapping[str, ActorReport] = _shown("By the actor's name.")
    counters: Counters = _shown("Totals since the start.")
    latency_ms: Latencies = _shown("Latencies of quotes, in milliseconds.")
    loop_lag_ms: float = _shown("The longest delay of the event loop in the last minute.")
    positions: PositionsReport | None = _shown(
        "Null where no positions are followed.", default=None
    )
    loop_lag_max_ms: float = _shown("The same since the start.", default=0.0)
    stale_symbols: int = _shown("Symbols whose price is older than the age limit.", default=0)
    clock_ahead_s: float | None = _shown(
        "By how much at least this machine's clock is ahead of Alpaca's, as the trading API's "
        "answers say; null for 5 s or less, or without answers.",
        default=None,
    )
    simulator: bool = _shown("The prices are simulated.", default=False)
    feeds: Mapping[str, FeedReport] = _shown(
        "Every connection: `stocks`, `crypto`, `options`, `news`.", factory=dict
    )
    channels: Mapping[str, ChannelCounters] = _shown(
        "Totals since the start of each channel that has any, in Alpaca's names.", factory=dict
    )
    relay: RelayStatus | None = _shown("Only where the relay is on.", default=None, omitted=True)
    journal: JournalStatus | None = _shown(
        "Only where the journal is on.", default=None, omitted=True
    )
    standby: StandbyReport | None = _shown("Only in a standby group.", default=None, omitted=True)
    histograms: Mapping[str, Histogram] = attrs.field(factory=dict, metadata={"metrics_only": True})
    """By the name in ``latency_ms``, and ``redis_write``; in the metrics, not in the JSON."""


def status_to_json(status: Status) -> dict[str, Any]:
    """The status as plain JSON types, as ``/status`` shows it."""
    plain: dict[str, Any] = _converter().unstructure(status)
    parts = ((RelayStatus, plain["relay"]), (StandbyReport, plain["standby"]), (Status, plain))
    for report, shown in parts:
        for field in attrs.fields(report) if shown is not None else ():
            if "metrics_only" in field.metadata or (
                field.metadata["omitted"] and shown[field.name] is None
            ):
                del shown[field.name]
    return plain


@cache
def _converter() -> Converter:
    """Made at the first call, so that a program that never calls it saves the import."""
    from cattrs.preconf.json import make_converter

    return make_converter(unstruct_collection_overrides={tuple: list})
