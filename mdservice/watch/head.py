"""What stands above the table: the service, the feed, the flow of events, what is in the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from mdservice.gateway.book import PnlBook
from mdservice.watch.service import ServiceWatch
from mdservice.watch.texts import printable

__all__ = ["Flow", "about", "state", "warnings"]

_WINDOW_S: Final = 3.0
_QUIET_S: Final = 3.0


class Flow:
    """How many events came in the last seconds, and when the last one did. Pure."""

    def __init__(self) -> None:
        self.last_ns: int | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, events: int, now_s: float, now_ns: int) -> None:
        """Take the count of all events so far.

        Args:
            events: Fewer than before: they are counted anew.
            now_s: Monotonic seconds.
            now_ns: UTC nanoseconds.
        """
        samples = self._samples
        if samples and events < samples[-1][1]:
            samples.clear()
        elif samples and events > samples[-1][1]:
            self.last_ns = now_ns
        samples.append((now_s, events))
        while len(samples) > 2 and samples[1][0] < now_s - _WINDOW_S:  # noqa: PLR2004 - a window has two ends
            samples.popleft()

    @property
    def per_s(self) -> float | None:
        """Events per second; None before two counts."""
        if len(self._samples) <= 1:
            return None
        (since_s, before), (now_s, events) = self._samples[0], self._samples[-1]
        return (events - before) / max(now_s - since_s, 0.001)

    def quiet(self, now_ns: int) -> bool:
        """Whether none came in the last seconds."""
        return self.last_ns is None or now_ns - self.last_ns > _QUIET_S * 1e9


def state(service: ServiceWatch) -> tuple[str, bool]:
    """The service in one or two words, and whether that is nothing to worry about."""
    if service.failure is not None:
        return "service away" if service.answered else "no service", False
    told = printable(str(service.status.get("state", "-")))
    return told, told == "running"


def about(service: ServiceWatch, flow: Flow) -> tuple[str, ...]:
    """More of the service, the most important first."""
    parts = []
    if flow.per_s is not None:
        parts.append(f"{flow.per_s:,.0f} events/s")
    feed = service.status.get("feed")
    if isinstance(feed, Mapping):
        parts.append(_feed(feed))
    if flow.last_ns is not None:
        last = datetime.fromtimestamp(flow.last_ns / 1e9, UTC)
        parts.append(f"last event {last:%H:%M:%S} UTC")
    if service.status.get("simulator"):
        parts.append("simulated prices")
    return tuple(parts)


def _feed(feed: Mapping[str, Any]) -> str:
    connected = "" if feed.get("connected") else " not connected"
    return printable(f"feed {feed.get('name', '-')}{connected}")


def warnings(service: ServiceWatch, book: PnlBook, *, old: bool) -> tuple[str, ...]:
    """Why what is shown may be out of date."""
    found, reason = [], service.reason
    if reason is not None:
        from_before = old and service.answered
        found.append(f"{reason}; what is shown is from before" if from_before else reason)
    elif service.status.get("state") != "running":
        found += [str(reason) for reason in service.status.get("reasons") or ()]
    for warning in book.warnings():
        # Where the positions are the service's, the reason is the same.
        known = reason is not None and warning.endswith(reason)
        found += [warning.partition(":")[0]] if known else [warning]
    return tuple(map(printable, found))
