"""Which drivers the settings ask for."""

from __future__ import annotations

from collections.abc import Sequence

from mdservice.errors import ConfigurationError
from mdservice.feeds.alpaca.login import Credentials
from mdservice.feeds.alpaca.raw import WebsocketsDriver
from mdservice.feeds.alpaca.sdk import AlpacaPyDriver
from mdservice.feeds.driver import Driver
from mdservice.settings import Settings

__all__ = ["make_drivers"]

_FOR_THE_SIMULATOR = Credentials("simulator", "simulator")
"""It takes any."""


def make_drivers(settings: Settings) -> Sequence[Driver]:
    """The drivers in the order in which to try them; a new one is added here.

    Nothing is connected, and alpaca-py is not imported before it is used.

    Raises:
        ConfigurationError: The feed's URL is not known: the embedded simulator has to be
            started first, and its URL set as ``feed_url``.
    """
    url = settings.resolved_feed_url()
    if url is None:
        raise ConfigurationError("the feed has no URL: set MDSERVICE_FEED_URL")
    credentials = _FOR_THE_SIMULATOR
    if settings.api_key is not None and settings.secret_key is not None:
        credentials = Credentials(settings.api_key, settings.secret_key)
    by_name: dict[str, Driver] = {
        AlpacaPyDriver.name: AlpacaPyDriver(url, credentials),
        WebsocketsDriver.name: WebsocketsDriver(url, credentials),
    }
    if settings.driver == "auto":
        return tuple(by_name.values())
    return (by_name[settings.driver],)
