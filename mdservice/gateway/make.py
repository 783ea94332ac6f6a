"""A book from settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, cast

from mdservice.clock import Clock, SystemClock
from mdservice.errors import ConfigurationError
from mdservice.gateway.alerting import make_alerting
from mdservice.gateway.book import PnlBook, ReadFrom
from mdservice.gateway.given import FunctionPositions, PositionsFunction
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.pnl.engine import PnlEngine
from mdservice.positions.choose import open_source
from mdservice.positions.chosen import ChosenPositions
from mdservice.positions.polled import PolledPositions
from mdservice.positions.service import ServicePositions
from mdservice.positions.source import PositionSource
from mdservice.prices.open import open_prices
from mdservice.prices.whereabouts import GivenServer, ServiceServer
from mdservice.settings import Settings
from mdservice.settings_feeds import feed_delay_s

__all__ = ["PositionsGiven", "make_book"]

PositionsGiven = str | PositionSource | PositionsFunction

_AT_ONCE_S: Final = 0.0


def make_book(
    positions: PositionsGiven,
    settings: Settings,
    *,
    redis_url: str | None = None,
    read_from: ReadFrom = "keys",
    symbols: Sequence[str] = (),
    alerts: Sequence[str] = (),
    clock: Clock | None = None,
) -> PnlBook:
    """Everything that the routes need; nothing is connected yet.

    Args:
        positions: As for :func:`mdservice.gateway.pnl_router`.
        settings: Limits, intervals, keys.
        redis_url: Where the prices are; else that of the settings, else the service's. With the
            service's goes its key prefix, where the settings choose none.
        read_from: Where an answer takes its prices.
        symbols: Only positions and live prices of these; none means all.
        alerts: Rules beside those of the settings.
        clock: The time, for tests.

    Raises:
        ConfigurationError: The URL, a rule or the text of the source cannot be used.
    """
    clock = clock or SystemClock()
    redis_url = redis_url or settings.redis_url
    prefix = settings.chosen_key_prefix
    server = (
        GivenServer(redis_url, prefix or "")
        if redis_url
        else ServiceServer(settings.socket, prefix)
    )
    calls = RedisCalls(server)
    source = _source(positions, settings)
    own = isinstance(source, FunctionPositions)
    if symbols:
        source = ChosenPositions(source, symbols)
    engine = PnlEngine(
        stale_after_s=settings.stale_after,
        price_ttl_s=settings.price_ttl,
        feed_delay_s=feed_delay_s(settings.feed),
        max_spread=settings.max_spread,
    )
    return PnlBook(
        PolledPositions(source, clock),
        _AT_ONCE_S if own else settings.positions_interval,
        calls,
        partial(open_prices, redis_url, symbols, prefix=prefix, socket=settings.socket),
        engine,
        make_alerting((*settings.alerts, *alerts), calls, clock),
        read_from,
        clock,
    )


def _source(positions: PositionsGiven, settings: Settings) -> PositionSource:
    if isinstance(positions, str):
        found = open_source(
            positions,
            trading_url=settings.resolved_trading_url(),
            api_key=settings.api_key,
            secret_key=settings.secret_key,
        )
        return found or ServicePositions(settings.socket)
    if not hasattr(positions, "fetch") and callable(positions):
        return FunctionPositions(positions)
    if hasattr(positions, "fetch"):
        return cast("PositionSource", positions)
    raise ConfigurationError(
        "positions: give a function that returns them, or a text as in MDSERVICE_POSITIONS"
    )
