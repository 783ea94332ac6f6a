"""The live subscriber of a book: opened, and opened again, for as long as the book runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import anyio

from mdservice.backoff import Backoff
from mdservice.errors import MDServiceError
from mdservice.logs import get_logger, masked
from mdservice.model.quote import Quote
from mdservice.model.redis_layout import Instance
from mdservice.prices.reader import Prices
from mdservice.prices.status import PricesStatus

__all__ = ["FollowedPrices"]

_log = get_logger(__name__)

_FIRST_S: Final = 0.2
_LIMIT_S: Final = 5.0
_SOON_S: Final = 1.0
"""So soon after the start nobody wonders that there is no connection."""


class FollowedPrices:
    """Hands on every quote that comes.

    Args:
        open_prices: Opens a reader of all events.
        came: Takes a quote.
    """

    def __init__(
        self,
        open_prices: Callable[[], AbstractAsyncContextManager[Prices]],
        came: Callable[[Quote], None],
    ) -> None:
        self._open_prices = open_prices
        self._came = came
        self._prices: Prices | None = None
        self._error: str | None = None
        self._since_s: float | None = None

    def status(self) -> PricesStatus | None:
        """How the reader is doing; None while there is none."""
        return None if self._prices is None else self._prices.status()

    def service(self) -> Instance | None:
        """The service that is followed, as it names itself; None where it does not."""
        return None if self._prices is None else self._prices.service

    def conflict(self) -> str | None:
        """That other services write the same keys, or None."""
        if self._prices is None or not (rivals := self._prices.rivals()):
            return None
        who = ", ".join(f"feed {one.feed}, process {one.pid} on {one.host}" for one in rivals)
        return (
            f"{len(rivals) + 1} services write the same keys in database {rivals[0].db}, so prices "
            f"may be of either; beside the followed one: {who}. Stop one of them, or set "
            "MDSERVICE_KEY_PREFIX"
        )

    def error(self) -> str | None:
        """What has failed, so that prices may be out of date, or None."""
        status = self.status()
        if status is None:
            return self._error
        return None if status.connected else status.last_error or "not connected to Redis"

    def delay(self) -> str | None:
        """That the first connection takes its time, though nothing has failed; else None."""
        if self._since_s is None or self._prices is not None or self._error is not None:
            return None
        overdue = anyio.current_time() > self._since_s + _SOON_S
        return "not connected to Redis yet" if overdue else None

    async def run(self) -> None:
        """Follow until cancelled."""
        backoff = Backoff(_FIRST_S, _LIMIT_S)
        self._since_s = anyio.current_time()
        while True:
            try:
                async with self._open_prices() as prices:
                    self._prices, self._error = prices, None
                    backoff.reset()
                    async for quote in prices:
                        self._came(quote)
            except MDServiceError as exc:
                reason = masked(str(exc))
                if reason != self._error:
                    _log.warning("gateway_has_no_prices", reason=reason)
                self._error = reason
            finally:
                self._prices = None
            await anyio.sleep(backoff.next_s())
