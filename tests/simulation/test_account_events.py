"""The account's events in the simulation: each check is shown to fail."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import pytest

from mdservice.app import topology
from mdservice.positions import trading_stream
from mdservice.positions.cache import PositionCache
from mdservice.positions.trade_updates import TradeUpdate
from tests.simulation.plan import Plan
from tests.simulation.world import World, simulate

_NO_FAULTS = ("none",)
_publish = topology._publish_update


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@functools.cache
def _seeds() -> list[int]:
    """The seeds with the shortest lives first."""
    seeds = range(8_300_001, 8_300_100)
    plans = [Plan.draw(seed, _NO_FAULTS, account=False) for seed in seeds]
    plans = [plan for plan in plans if plan.trading is not None and plan.trading.of_service]
    return [plan.seed for plan in sorted(plans, key=lambda plan: plan.faults_for_s)]


def _found(count: int = 3, first: Sequence[int] = ()) -> Iterator[str]:
    """The violations, with the faults of the trading stream and without those of the service."""
    for seed in (*first, *_seeds()[:count]):
        yield str(simulate(seed, only=_NO_FAULTS, account=False).violations)


def _finds(words: str, count: int = 3, first: Sequence[int] = ()) -> bool:
    """Whether some seed shows it. ``first`` have shown it: while they do, no other need run."""
    return any(words in found for found in _found(count, first))


def test_nothing_is_found_where_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds: list[World] = []
    init = World.__init__

    def noted(self: World, *args: Any) -> None:
        init(self, *args)
        worlds.append(self)

    monkeypatch.setattr(World, "__init__", noted)
    assert list(_found()) == ["[]", "[]", "[]"]
    assert all(each.account_events and each.account_events.published > 20 for each in worlds)


def _publish_other(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Publish other events than those that came."""

    async def publish(positions: PositionCache, outbox: Any, update: TradeUpdate) -> None:
        for each in change(update):
            await _publish(positions, outbox, each)

    monkeypatch.setattr(topology, "_publish_update", publish)


def test_finds_a_lost_event(monkeypatch: pytest.MonkeyPatch) -> None:
    _publish_other(monkeypatch, lambda update: [] if update.event == "new" else [update])
    assert _finds("in the place of", 1)


def test_finds_events_that_are_lost_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def first(update: TradeUpdate) -> list[TradeUpdate]:
        nonlocal count
        count += 1
        return [update] if count < 10 else []

    _publish_other(monkeypatch, first)
    assert _finds("account.updated lacks", 1)


def test_finds_an_event_that_is_published_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    _publish_other(monkeypatch, lambda update: [update, update])
    assert _finds("in the place of", 1)


def test_finds_an_event_with_another_price(monkeypatch: pytest.MonkeyPatch) -> None:
    _publish_other(
        monkeypatch,
        lambda update: [attrs.evolve(update, price=update.price and update.price + 1)],
    )
    assert _finds("in the place of", 1)


def test_finds_legs_that_are_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = trading_stream.parse_trade_updates
    monkeypatch.setattr(trading_stream, "parse_trade_updates", lambda data: parse(data)[:1])
    assert _finds("in the place of")


def test_finds_an_event_before_it_was_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = PositionCache.apply
    waiting: dict[PositionCache, TradeUpdate] = {}

    def later(self: PositionCache, update: TradeUpdate, *given: Any) -> bool:
        before = waiting.pop(self, None)
        waiting[self] = update
        return before is not None and apply(self, before, *given)

    monkeypatch.setattr(PositionCache, "apply", later)
    assert _finds("with {", 8, first=[8_300_013])


def test_finds_a_position_that_the_account_never_had(monkeypatch: pytest.MonkeyPatch) -> None:
    position = PositionCache.position

    def more(self: PositionCache, priced_by: str) -> Any:
        found = position(self, priced_by)
        return found and attrs.evolve(found, qty=(found.qty or 0) + 7)

    monkeypatch.setattr(PositionCache, "position", more)
    assert _finds(" after ", 1)
