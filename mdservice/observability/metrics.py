"""Prometheus metrics, read from a snapshot of the service at each scrape."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final, get_args

import attrs
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from mdservice.model.status import (
    ActorReport,
    ChannelCounters,
    Counters,
    FeedPhase,
    FeedReport,
    JournalProblem,
    JournalStatus,
    Latencies,
    RelayClassReport,
    RelayStatus,
    ServiceState,
    StandbyReport,
    Status,
)
from mdservice.observability.protobuf import (
    CONTENT_TYPE,
    LatencyFamily,
    encode_protobuf,
    prefers_protobuf,
)

__all__ = ["StatusCollector", "metrics_registry", "package_version", "render_metrics"]

_MS: Final = 1000.0


@cache
def package_version() -> str:
    """The installed version, or ``unknown`` where the package runs without being installed."""
    try:
        return version("mdservice")
    except PackageNotFoundError:
        return "unknown"


class StatusCollector(Collector):
    """Turns a status into metrics.

    Args:
        read: Returns the status at the moment of the scrape.
    """

    def __init__(self, read: Callable[[], Status]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """All metrics of one snapshot."""
        status = self._read()
        for counter in attrs.fields(Counters):
            yield CounterMetricFamily(
                f"mdservice_{counter.name}",
                counter.metadata["meaning"],
                value=getattr(status.counters, counter.name),
            )
        yield CounterMetricFamily(
            "mdservice_other_messages",
            "Messages other than quotes, ignored.",
            value=status.feed.other_messages,
        )
        yield CounterMetricFamily(
            "mdservice_redis_command_errors",
            "Commands that failed inside executed writes.",
            value=status.redis.command_errors,
        )
        yield from _channels(status)
        yield from _connections(status)
        yield from _gauges(status)
        yield from _positions(status)
        yield from _relay(status)
        yield from _journal(status)
        if status.standby is not None:
            yield from _declared("group", {"": status.standby}, StandbyReport)
        yield from _actors(status)
        yield from _histograms(status)
        yield from _labelled(status)


def metrics_registry(collector: Collector) -> CollectorRegistry:
    """A registry of this collector alone, with the figures of its process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


def render_metrics(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics and their content type.

    Args:
        registry: The metrics.
        accept: The header of the request. Text in Prometheus' format, in OpenMetrics' where it
            names that, or protobuf with native histograms where it prefers that.
    """
    if prefers_protobuf(accept):
        return encode_protobuf(registry.collect()), CONTENT_TYPE
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _channels(status: Status) -> Iterator[Metric]:
    for counter in attrs.fields(ChannelCounters):
        family = CounterMetricFamily(
            f"mdservice_records_{counter.name}", counter.metadata["meaning"], labels=["channel"]
        )
        for channel, counts in status.channels.items():
            family.add_metric([channel], getattr(counts, counter.name))
        yield family


def _declared(
    thing: str, reports: Mapping[str, object], report: type[attrs.AttrsInstance], label: str = ""
) -> Iterator[Metric]:
    """The metrics that a class of reports declares.

    Args:
        thing: The beginning of their names.
        reports: By the value of the label.
        report: The class.
        label: Its name, or nothing for a single report.
    """
    for field in attrs.fields(report):
        metric = field.metadata.get("metric")
        if metric is None:
            continue
        make = CounterMetricFamily if metric == "counter" else GaugeMetricFamily
        name = field.name.removesuffix("_s") + ("_seconds" if field.name.endswith("_s") else "")
        family = make(
            f"mdservice_{thing}_{name}", field.metadata["meaning"], labels=[label] if label else []
        )
        for value, one in reports.items():
            family.add_metric([value] if label else [], getattr(one, field.name) or 0)
        yield family


def _connections(status: Status) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "mdservice_connection_up", "1 while the feed is connected and logged in.", labels=["feed"]
    )
    idle = GaugeMetricFamily(
        "mdservice_connection_idle", "1 while nothing of the feed is wanted.", labels=["feed"]
    )
    left_out = GaugeMetricFamily(
        "mdservice_connection_left_out", "Symbols that it does not grant.", labels=["feed"]
    )
    received = CounterMetricFamily(
        "mdservice_connection_records_received",
        "Records that came over its websocket.",
        labels=["feed", "channel"],
    )
    phase = GaugeMetricFamily(
        "mdservice_connection_phase", "1 for the present phase.", labels=["feed", "phase"]
    )
    for name, feed in status.feeds.items():
        up.add_metric([name], float(feed.connected))
        idle.add_metric([name], float(feed.phase == "idle"))
        left_out.add_metric([name], len(feed.left_out))
        for channel, count in feed.received.items():
            received.add_metric([name, channel], count)
        for each in get_args(FeedPhase):
            phase.add_metric([name, each], float(feed.phase == each))
    yield from (up, idle, left_out, received, phase)
    yield from _declared("connection", status.feeds, FeedReport, "feed")


def _gauges(status: Status) -> Iterator[Metric]:
    feed, redis = status.feed, status.redis
    for name, text, value in (
        ("feed_connected", "1 while the feed is connected and logged in.", feed.connected),
        ("redis_connected", "1 while Redis answers.", redis.connected),
        ("symbols", "Wanted symbols, as in /status.", status.symbols),
        ("symbols_acknowledged", "Of these, acknowledged by the feed.", feed.acknowledged),
        ("symbols_wanted", "Symbols asked for.", feed.wanted),
        ("symbols_left_out", "Symbols that the feed does not grant.", len(feed.left_out)),
        (
            "symbols_without_quotes",
            "Symbols without a quote since they were subscribed.",
            feed.without_quotes,
        ),
        (
            "feed_times_frozen_seconds",
            "How long exchange times have stood still.",
            feed.times_frozen_s,
        ),
        ("backlog_events", "Events that Redis has not acknowledged yet.", redis.backlog),
        (
            "backlog_limit_events",
            "As many are kept in order; of more, the oldest are conflated or dropped.",
            redis.backlog_limit,
        ),
        ("stale_symbols", "Symbols with a price beyond the age limit.", status.stale_symbols),
        (
            "clock_ahead_seconds",
            "By how much at least this machine's clock is ahead of Alpaca's; 0 for 5 s or less.",
            status.clock_ahead_s or 0,
        ),
        ("event_loop_lag_seconds", "How late the event loop runs.", status.loop_lag_ms / _MS),
        ("uptime_seconds", "Time since the start.", status.uptime_s),
        ("simulator", "1 where the prices are simulated.", status.simulator),
    ):
        yield GaugeMetricFamily(f"mdservice_{name}", text, value=float(value))
    refuses = GaugeMetricFamily(
        "mdservice_redis_refuses",
        "1 while Redis refuses to write, with the code of its error; else there is none.",
        labels=["code"],
    )
    if redis.refusal is not None:
        refuses.add_metric([redis.refusal], 1)
    yield refuses


def _positions(status: Status) -> Iterator[Metric]:
    positions = status.positions
    if positions is None:
        return
    for name, text, value in (
        ("positions", "Held positions, as last fetched.", positions.held),
        ("positions_followed", "Symbols followed for positions.", positions.followed),
        ("positions_left_out", "Of these, not granted by the feed.", len(positions.left_out)),
        ("positions_problems", "Positions with a problem.", len(positions.problems)),
        ("positions_up", "1 where the source answered the last time.", positions.state == "ok"),
    ):
        yield GaugeMetricFamily(f"mdservice_{name}", text, value=float(value))
    if positions.updates is not None:
        yield GaugeMetricFamily(
            "mdservice_trade_updates_up",
            "1 while the trading stream is followed.",
            value=float(positions.updates.state == "following"),
        )
    if positions.age_s is not None:
        text = "Time since the source of positions last answered."
        yield GaugeMetricFamily("mdservice_positions_age_seconds", text, value=positions.age_s)


def _relay(status: Status) -> Iterator[Metric]:
    relay = status.relay
    if relay is None:
        return
    yield GaugeMetricFamily(
        "mdservice_relay_clients", "Programs connected to the relay.", value=len(relay.clients)
    )
    yield from _declared("relay", {"": relay}, RelayStatus)
    yield from _declared("relay_class", dict(relay.classes.items()), RelayClassReport, "class")


def _journal(status: Status) -> Iterator[Metric]:
    journal = status.journal
    if journal is None:
        return
    yield from _declared("journal", {"": journal}, JournalStatus)
    text = "1 while the journal is complete; 0 where its disk is full, slow or fails."
    yield GaugeMetricFamily("mdservice_journal_up", text, value=float(journal.last_error is None))
    problem = GaugeMetricFamily(
        "mdservice_journal_problem", "1 for the reason why it is not complete.", labels=["problem"]
    )
    for name in get_args(JournalProblem):
        problem.add_metric([name], float(journal.problem == name))
    yield problem


def _actors(status: Status) -> Iterator[Metric]:
    gauges: tuple[tuple[str, str, Callable[[ActorReport], float]], ...] = (
        ("running", "1 while the actor runs.", lambda actor: actor.state == "running"),
        ("inbox_used", "Items that wait in its inbox.", lambda actor: actor.inbox.used),
        ("inbox_size", "Items that its inbox holds.", lambda actor: actor.inbox.size),
    )
    for name, text, read in gauges:
        gauge = GaugeMetricFamily(f"mdservice_actor_{name}", text, labels=["actor"])
        for actor, report in status.actors.items():
            gauge.add_metric([actor], read(report))
        yield gauge
    yield from _declared("actor", status.actors, ActorReport, "actor")


def _histograms(status: Status) -> Iterator[Metric]:
    samples = "Of samples: up to 16 quotes and trades of each write."
    meanings = {f.name: f"{f.metadata['meaning']} {samples}" for f in attrs.fields(Latencies)}
    meanings["redis_write"] = "From sending a batch to Redis to its answer."
    for name, meaning in meanings.items():
        yield LatencyFamily(f"mdservice_{name}_seconds", meaning, status.histograms.get(name))


def _labelled(status: Status) -> Iterator[Metric]:
    state = GaugeMetricFamily("mdservice_state", "1 for the present state.", labels=["state"])
    for name in get_args(ServiceState):
        state.add_metric([name], float(status.state == name))
    yield state
    feed = GaugeMetricFamily("mdservice_feed_info", "The feed.", labels=["feed", "driver"])
    feed.add_metric([status.feed.name, status.feed.driver], 1)
    yield feed
    build = GaugeMetricFamily("mdservice_build_info", "The build.", labels=["version", "python"])
    build.add_metric([package_version(), platform.python_version()], 1)
    yield build
