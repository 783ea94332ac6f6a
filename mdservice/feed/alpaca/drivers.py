"""Makes the drivers, the history and the market clock that the settings choose."""

from __future__ import annotations

from collections.abc import Sequence

from mdservice.clock import Clock
from mdservice.errors import ConfigurationError
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory, AlpacaMarketClock
from mdservice.feed.driver import Driver, LoginLimit
from mdservice.model.feeds import STOCKS, Feed
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings
from mdservice.settings.feeds import url_variable

__all__ = ["make_drivers", "make_history", "make_market_clock", "make_stock_clock"]

_AUTO = ("alpaca-py", "websockets")
"""The drivers that ``auto`` tries, in this order."""
_FOR_THE_SIMULATOR = Credentials("simulator", "simulator")
"""It takes any."""


def make_drivers(
    settings: Settings, feed: Feed = STOCKS, limit: LoginLimit | None = None
) -> Sequence[Driver]:
    """The drivers of a feed in the order in which to try them; a new one is added here.

    Connects nothing, and imports alpaca-py only when it is used.

    Args:
        settings: The feed's URL, the keys and the driver.
        feed: Which connection.
        limit: How long a login may take; the drivers share it.

    Raises:
        ConfigurationError: The feed's URL is not known: the embedded simulator has to be
            started first, and its URL set as ``feed_url``. Or the environment has a proxy or
            certificates that cannot be used.
    """
    url = settings.stream_url(feed.name)
    if url is None:
        raise ConfigurationError(f"{feed.name} has no stream: set {url_variable(feed.name)}")
    try:
        from mdservice.feed.alpaca.sdk_driver import AlpacaPyDriver
        from mdservice.feed.alpaca.websockets_driver import WebsocketsDriver
    except ImportError as exc:
        raise ConfigurationError(
            f"the feed's drivers need the package websockets, which cannot be imported ({exc}); "
            "install it"
        ) from exc
    credentials = _credentials(settings)
    limit = limit or LoginLimit()
    by_name: dict[str, Driver] = {
        AlpacaPyDriver.name: AlpacaPyDriver(url, credentials, limit, feed),
        WebsocketsDriver.name: WebsocketsDriver(url, credentials, limit=limit, feed=feed),
    }
    if settings.driver == "auto":
        return tuple(by_name[name] for name in _AUTO)
    return (by_name[settings.driver],)


def make_history(
    settings: Settings, feed: Feed, clock: Clock, http: HttpClient, *, keep_wire: bool = False
) -> AlpacaHistory | None:
    """The history of a feed; connects nothing.

    None if the feed has its own URL and no history URL is set: Alpaca's records must not get
    between those of another feed.

    Args:
        settings: The history's URL, the feed's variant and the keys.
        feed: Whose history.
        clock: Stamps received records.
        http: The client, closed by its owner.
        keep_wire: Whether each record is to keep its row as its ``wire``.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """
    if not settings.history_known_of(feed.name):
        return None
    return AlpacaHistory(
        settings.resolved_rest_url(),
        settings.feed_name_of(feed.name),
        _credentials(settings),
        clock,
        http=http,
        feed=feed,
        keep_wire=keep_wire,
    )


def make_market_clock(settings: Settings, http: HttpClient) -> AlpacaMarketClock:
    """The exchange's hours.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """
    return AlpacaMarketClock(
        settings.trading_url, settings.feed_name, _credentials(settings), http=http
    )


def make_stock_clock(settings: Settings, http: HttpClient) -> MarketClock | None:
    """The clock of the stock market, also for a feed that is always open; None without keys.

    Raises:
        ConfigurationError: As :func:`make_market_clock`.
    """
    if settings.api_key is None and not settings.simulated:
        return None
    headers = _credentials(settings).as_headers()
    return MarketClock(settings.resolved_trading_url(), headers, http, "is not known")


def _credentials(settings: Settings) -> Credentials:
    if settings.api_key is None or settings.secret_key is None:
        return _FOR_THE_SIMULATOR
    return Credentials(settings.api_key, settings.secret_key)
