"""Errors inside reach the screen."""

from __future__ import annotations

import logging

from mdservice.cli.watch.show import LastError
from mdservice.observability.logging import get_logger


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
