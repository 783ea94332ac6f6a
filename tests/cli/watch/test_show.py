"""Errors inside reach the screen, and the service's feed is used."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from mdservice.cli.watch.gather import ServiceWatch
from mdservice.cli.watch.show import LastError, _of_the_service
from mdservice.observability.logging import get_logger
from mdservice.settings import Settings


def test_the_last_error_is_kept_with_its_cause() -> None:
    handler = LastError()
    logger = logging.getLogger("mdservice.test_watch_errors")
    logger.addHandler(handler)
    logger.propagate = False
    log = get_logger(logger.name)
    log.warning("passing")
    assert handler.texts() == ()
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        log.exception("part_failed", part="follow")
    assert handler.texts() == (
        "an error inside: part_failed part='follow': ZeroDivisionError: by zero",
    )


@pytest.mark.parametrize(
    ("given", "feed", "used"),
    [
        ({}, {"name": "sip"}, "sip"),
        ({"feed": "iex"}, {"name": "sip"}, "iex"),
        ({}, {"name": "another"}, "iex"),
        ({}, {"name": None}, "iex"),
        ({}, "no object", "iex"),
        ({}, None, "iex"),
    ],
)
def test_the_feed_of_the_service_is_used_where_none_is_set(
    given: dict[str, Any], feed: Any, used: str
) -> None:
    service = ServiceWatch(Path("socket"), subscriptions=False)
    service.status = {} if feed is None else {"feed": feed}
    settings = _of_the_service(Settings(alerts="AAPL price > 1", **given), service)
    assert settings.feed == used
    assert settings.alerts == (), "the gateway handles them"
    assert ("feed" in settings.sources) == (bool(given) or used != "iex")
