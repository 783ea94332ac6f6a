"""The relay within the service: where it listens, what it serves, and what it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from mdservice.app.topology import FeedParts, MakeRelay, Pipeline
from mdservice.clock import Clock
from mdservice.errors import ConfigurationError
from mdservice.feed.requests import Subscribe, Unsubscribe
from mdservice.http_api.listeners import tcp_address, tcp_listeners
from mdservice.model.feeds import NEWS_FEED, STOCKS, Feed, Topic
from mdservice.model.kinds import Kind
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger
from mdservice.relay.wishes import SOURCE
from mdservice.settings import Settings

__all__ = ["open_relay"]

_log = get_logger(__name__)


class _Upstream:
    """The service's feeds, as the relay uses them.

    Args:
        pipelines: Filled once they are built.
    """

    def __init__(self, pipelines: Mapping[Feed, Pipeline]) -> None:
        self._pipelines = pipelines

    async def subscribe(self, feed: Feed, topics: Sequence[Topic]) -> None:
        """Let the feed send these topics; in an outage, as soon as it is back.

        Raises:
            SubscriptionRefused: The feed has refused all of them.
        """
        await self._pipelines[feed].request(Subscribe(tuple(topics), SOURCE))

    async def unsubscribe(self, feed: Feed, topics: Sequence[Topic]) -> None:
        """The relay no longer wants these topics."""
        await self._pipelines[feed].request(Unsubscribe(tuple(topics), (SOURCE,)))

    def latest(self, feed: Feed, kind: Kind[Any], symbol: str) -> Sequence[Any]:
        """The latest record of a symbol, or of all symbols for ``*``."""
        if kind not in feed.kinds:
            return ()
        sequencer = self._pipelines[feed].router.sequencer(kind)
        if symbol == EVERY_SYMBOL:
            return tuple(sequencer.all_latest())
        record = sequencer.latest(symbol)
        return () if record is None else (record,)


async def open_relay(
    settings: Settings,
    feeds: Sequence[FeedParts],
    stack: AsyncExitStack,
    clock: Clock,
    *,
    simulated: bool,
) -> MakeRelay | None:
    """Listen at the relay's address, and return what makes the relay; None where it is off.

    Args:
        settings: The settings.
        feeds: What the service has.
        stack: Closes the listeners.
        clock: The time.
        simulated: Whether the simulator feeds the service: then each path of stocks is served, and
            the relay is on by default, at a free port if its own is in use.

    Raises:
        ConfigurationError: The address or the certificate cannot be used.
    """
    address = settings.relay
    if address is None or (settings.relay_is_default and not simulated):
        return None
    # Without the relay the service also runs where websockets, one of two drivers, is broken.
    from mdservice.relay.server import Relay, RelayConfig

    tls = settings.relay_tls()
    token = "keys" if settings.relay_keys else None
    try:
        listeners = await tcp_listeners(
            address, token=token, setting="MDSERVICE_RELAY", needed="MDSERVICE_RELAY_KEYS"
        )
    except ConfigurationError as error:
        if not settings.relay_is_default:
            raise
        listeners = await tcp_listeners("127.0.0.1:0", token=token, setting="MDSERVICE_RELAY")
        _log.warning("relay_port_in_use", address=address, reason=str(error))
    for listener in listeners:
        stack.callback(listener.close)
    served = {
        parts.feed: _path_name(settings, parts.feed, any_name=simulated or len(feeds) == 1)
        for parts in feeds
    }
    config = RelayConfig(tcp_address(listeners[0]), served, settings.relay_keys, tls)
    return lambda pipelines, ready: Relay(config, listeners, _Upstream(pipelines), clock, ready)


def _path_name(settings: Settings, feed: Feed, *, any_name: bool) -> str | None:
    """The feed's name in Alpaca's paths; None where any is right."""
    if feed is NEWS_FEED:
        return ""
    if feed is STOCKS and any_name:
        return None
    return settings.feed_name_of(feed.name)
