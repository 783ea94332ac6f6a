"""Whether the feed lets us in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import attrs

from mdservice.cli.check_result import CheckResult, failed, passed, skipped
from mdservice.cli.failures import causes
from mdservice.errors import ConfigurationError, FeedError, FeedRefused, MDServiceError

if TYPE_CHECKING:
    from mdservice.feeds.driver import Driver
    from mdservice.settings import Settings

__all__ = ["NAME", "check_feed", "log_in"]

NAME = "feed"


async def check_feed(settings: Settings, running: str | None) -> CheckResult:
    """Connect and log in as the service would, and leave again at once.

    Args:
        settings: Where to, with which keys and driver. The embedded simulator is started for it.
        running: How the service that holds the account's one connection is doing, or None
            where none runs; its connection is not disturbed.
    """
    if running is not None and not settings.simulator_embedded:
        return skipped(NAME, f"the running service holds the account's connection: {running}")
    from mdservice.feeds.alpaca.drivers import make_drivers
    from mdservice.feeds.driver import LONGEST_OPEN_TIMEOUT_S, LoginLimit

    async with AsyncExitStack() as stack:
        if settings.simulator_embedded:
            from mdservice.simulator import SimulatorConfig, open_simulator

            config = SimulatorConfig(rate=0, connection_limit=None)
            simulator = await stack.enter_async_context(open_simulator(config))
            settings = attrs.evolve(settings, feed="simulator", feed_url=simulator.url)
        try:
            # One try has all the time that a running service comes to after several.
            drivers = make_drivers(settings, LoginLimit(LONGEST_OPEN_TIMEOUT_S))
        except ConfigurationError as exc:
            return failed(NAME, str(exc), configuration=True)
        return await log_in(settings.feed_name, drivers)


async def log_in(feed: str, drivers: Sequence[Driver]) -> CheckResult:
    """Log in with the first driver that can, as ``auto`` would.

    A refusal ends it, since another driver would be refused likewise.
    """
    troubles: list[str] = []
    configuration = False
    for driver in drivers:
        try:
            async with driver.connect():
                before = f" ({'; '.join(troubles)})" if troubles else ""
                return passed(NAME, f"{feed}: logged in by {driver.name}{before}")
        except (MDServiceError, BaseExceptionGroup) as exc:
            refused = _foreseen(exc)
            if isinstance(refused, FeedRefused):
                return _refusal(feed, refused)
            configuration = isinstance(refused, ConfigurationError)
            troubles.append(f"{driver.name}: {refused}")
    advice = "" if configuration else "check the network, and MDSERVICE_FEED_URL where it is set"
    return failed(NAME, "; ".join(troubles), advice, configuration=configuration)


def _foreseen(exc: BaseException) -> MDServiceError:
    """The one error of a connection; anything unforeseen goes on."""
    found = list(causes(exc))
    for cause in found:
        if not isinstance(cause, (FeedError, ConfigurationError)):
            raise exc
    return next(cause for cause in found if isinstance(cause, MDServiceError))


def _refusal(feed: str, refused: FeedRefused) -> CheckResult:
    from mdservice.feeds.alpaca.codes import (
        Reaction,
        reaction_to_code,
        reaction_to_http,
    )

    reaction = (reaction_to_http if refused.http else reaction_to_code)(refused.code)
    advice = ""
    if reaction is Reaction.WAIT_FOR_SLOT:
        advice = (
            "a running mdservice may be that program: look for it with `mdservice status`, or on "
            "the account's other machines"
        )
    return failed(NAME, f"{feed}: {refused}", advice, configuration=reaction is Reaction.FATAL)
