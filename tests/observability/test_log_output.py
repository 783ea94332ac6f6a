"""The limit on repeated events."""

from __future__ import annotations

import threading
from typing import Any

import structlog

from mdservice.observability.log_output import RepeatLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def passed(limit: RepeatLimit, **event: Any) -> dict[str, Any] | None:
    try:
        return dict(limit(None, event.pop("level", "warning"), event))
    except structlog.DropEvent:
        return None


def test_repeats_beyond_the_limit_are_suppressed_and_counted() -> None:
    clock = Clock()
    limit = RepeatLimit(repeats=2, period_s=10, now=clock)
    assert [passed(limit, event="lost", reason=n) is not None for n in range(6)] == (
        [True, True, False, False, False, False]
    )
    clock.now = 9.9
    assert passed(limit, event="lost") is None
    clock.now = 10.0
    assert passed(limit, event="lost") == {"event": "lost", "suppressed": 5}
    assert passed(limit, event="lost") == {"event": "lost"}


def test_another_fact_has_its_own_count() -> None:
    limit = RepeatLimit(repeats=1, now=Clock())
    assert passed(limit, event="lost", symbol="AAPL")
    assert passed(limit, event="lost", symbol="MSFT")
    assert passed(limit, event="lost", symbol="AAPL", level="error")
    assert passed(limit, event="found", symbol="AAPL")
    assert passed(limit, event="lost", symbol="AAPL", at=7) is None


def test_critical_events_are_never_suppressed() -> None:
    limit = RepeatLimit(repeats=1, now=Clock())
    assert all(passed(limit, event="end", level="critical") for _ in range(9))


def test_only_so_many_facts_are_remembered() -> None:
    limit = RepeatLimit(repeats=1, facts=10, now=Clock())
    for number in range(1000):
        assert passed(limit, event=f"fact_{number}")
    assert len(limit._windows) == 10
    assert passed(limit, event="fact_999") is None


def test_repeats_are_counted_across_threads() -> None:
    limit = RepeatLimit(repeats=100, facts=2, now=Clock())
    seen: list[bool] = []

    def log_many(name: str) -> None:
        for _ in range(300):
            seen.append(passed(limit, event=name) is not None)

    threads = [threading.Thread(target=log_many, args=(f"f{n % 2}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(seen), sum(seen)) == (1200, 200)
