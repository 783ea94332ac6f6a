"""What is known of the feed by the settings, or because an embedder has brought its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs

from mdservice.feeds.alpaca.drivers import make_market_clock
from mdservice.feeds.driver import Driver
from mdservice.network import HttpClient
from mdservice.settings import Settings
from mdservice.settings_feeds import feed_delay_s
from mdservice.settings_fields import Unchosen

__all__ = ["FeedFacts", "feed_facts"]


@attrs.frozen
class FeedFacts:
    """One service's feed.

    Attributes:
        name: For people and the status.
        simulated: Whether its prices are invented.
        own: Whether it is no feed of Alpaca's, but the embedder's own.
        delay_s: How late its quotes are by design, seconds.
        is_open: Asks whether its market is open.
        hours_refused: Why the trading API refuses to give the market's hours, or None.
    """

    name: str
    simulated: bool
    own: bool
    delay_s: float
    is_open: Callable[[], Awaitable[bool]]
    hours_refused: Callable[[], str | None]


def feed_facts(settings: Settings, drivers: Sequence[Driver] | None, http: HttpClient) -> FeedFacts:
    """The facts of the feed that these drivers reach, or that the settings name.

    Drivers that an embedder brings reach a feed of their own, called as the first of them and
    always open, unless the settings name one of Alpaca's, or the simulator.
    """
    named = not isinstance(settings.feed, Unchosen) or settings.feed_url is not None
    own = bool(drivers) and not named
    market = None if own else make_market_clock(settings, http)
    return FeedFacts(
        name=drivers[0].name if drivers and own else settings.feed_name,
        simulated=settings.simulated and not own,
        own=own,
        delay_s=feed_delay_s(settings.feed),
        is_open=_always if market is None else market.is_open,
        hours_refused=lambda: None if market is None else market.refused,
    )


async def _always() -> bool:
    return True
