"""Asks Alpaca's trading API for the hours of the stock market."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from statistics import median
from typing import Final
from urllib.parse import urlsplit

import anyio
import msgspec
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.model.market import Market
from mdservice.observability.logging import get_logger
from mdservice.observability.masking import mask_url
from mdservice.runtime.network import HttpAnswer, HttpClient, HttpFailed

__all__ = ["ClockAhead", "MarketClock", "clock_refusal"]

_log = get_logger(__name__)

_TIMEOUT_S = 5.0
_EVERY_S, _EVERY_S_HERE = 10.0, 1.0
_MOST_BYTES = 64 * 1024
_OK = 200
_SERVER_ERROR = 500
_KEYS_REFUSED = (401, 403)
_BUSY = (408, 425, 429)
_MOST_AHEAD_S: Final = 5.0
"""As much may be the reason of no late price: networks and servers have such delays too."""
_ANSWERS: Final = 3
"""As many answers in turn must say it, since a clock that is set jumps between two of them."""


class ClockAhead:
    """Tells a machine whose clock is ahead, by the times that a server puts on its answers. Pure.

    The times of records cannot tell it: a clock that is ahead looks like a slow feed. An answer
    cannot be older than its request, however slow the network is.
    """

    def __init__(self) -> None:
        self._ahead_s: deque[float] = deque(maxlen=_ANSWERS)

    def add(self, asked_ns: int, date: str | None) -> None:
        """Note an answer.

        Args:
            asked_ns: When it was asked for, by this machine's clock, UTC nanoseconds.
            date: Its ``Date`` header, which has whole seconds; None if it has none.
        """
        if date is None:
            return
        try:
            server_s = parsedate_to_datetime(date).timestamp()
        except (ValueError, OverflowError):
            return
        self._ahead_s.append(asked_ns / 1e9 - server_s - 1)

    def seconds(self) -> float | None:
        """By how much at least the clock is ahead; None if that is not known, or 5 s at most."""
        if len(self._ahead_s) < _ANSWERS or min(self._ahead_s) <= _MOST_AHEAD_S:
            return None
        return round(median(self._ahead_s), 1)


class MarketClock:
    """The market's hours. A failure is logged once, until its reason changes.

    Source: Alpaca, trading API, ``GET /v2/clock``:
    ``{"is_open": true, "next_open": "…", "next_close": "…"}``.

    Args:
        base_url: ``https://paper-api.alpaca.markets``.
        headers: Sent with each request; never shown.
        http: A client shared with other parts, and closed by its owner.
        without: What the log says that the market is without an answer: ``counts as open``.

    Attributes:
        refused: Why the hours stay unknown until a setting changes, or None.
        check: Compares this machine's clock with the server's, while :meth:`follow` runs.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], http: HttpClient, without: str
    ) -> None:
        self.refused: str | None = None
        self.check = ClockAhead()
        self._url = f"{base_url.rstrip('/').removesuffix('/v2')}/v2/clock"
        self._shown = mask_url(self._url)
        self._headers = headers
        self._http = http
        self._without = without
        self._logged: str | None = None
        self._last: Market | None = None
        self._date: str | None = None
        """The ``Date`` of the last answer; None if none came."""
        self._every_s = _EVERY_S_HERE if _is_here(self._url) else _EVERY_S
        http.prepare(self._url)

    async def follow(
        self,
        clock: Clock,
        came: Callable[[Market | None], None],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Ask until cancelled: a server on this machine each second, another each ten seconds.

        Args:
            clock: The time.
            task_status: Started at once.
            came: Called with what the clock says; None if that is not known. After a failure, the
                last answer counts until the market opens or closes by it.
        """
        task_status.started()
        while True:
            asked_ns = clock.utc_ns()
            market = await self.ask()
            self.check.add(asked_ns, self._date)
            if market is not None:
                self._last = market
            elif self._last is not None:
                changes_ns = self._last.changes_ns
                if changes_ns is None or clock.utc_ns() >= changes_ns:
                    self._last = None
            came(self._last)
            await anyio.sleep(self._every_s)

    async def ask(self) -> Market | None:
        """What the clock says; None if it cannot be had. Never raises."""
        self._date = None
        try:
            with anyio.fail_after(_TIMEOUT_S):
                answer = await self._http.get(
                    self._url,
                    headers=self._headers,
                    timeout_s=_TIMEOUT_S,
                    most_bytes=_MOST_BYTES,
                )
        except HttpFailed as exc:
            self._note(f"{self._shown}: {exc}")
            return None
        except TimeoutError:
            self._note(f"{self._shown} does not answer within {_TIMEOUT_S:g} s")
            return None
        self._date = answer.headers.get("Date")
        return self._read(answer)

    def _read(self, answer: HttpAnswer) -> Market | None:
        status, reason = answer.status, ""
        if status == _OK:
            try:
                market = msgspec.json.decode(answer.body, type=Market)
            except (ValueError, RecursionError):
                reason = f"{self._shown} does not answer as Alpaca's clock does"
            else:
                self._note(None)
                return market
        reason = reason or f"{self._shown} answers HTTP {status}"
        if status >= _SERVER_ERROR or status in _BUSY:
            self._note(reason)
        else:
            self._note(f"{reason}: {clock_refusal(status)}", refused=True)
        return None

    def _note(self, reason: str | None, *, refused: bool = False) -> None:
        """Store and log why there is no answer, or that there is one."""
        if reason is None:
            if self._logged is not None:
                _log.info("market_hours_known", url=self._shown)
        elif reason != self._logged:
            _log.warning("market_hours_unknown", reason=reason, market=self._without)
        self._logged = reason
        self.refused = reason if refused else None


def _is_here(url: str) -> bool:
    """Whether the server is on this machine, so that no rate limit is to be spared."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # it is no URL, which the first request reports
        return False
    return host in {"localhost", "::1"} or host.startswith("127.")


def clock_refusal(status: int) -> str:
    """What to do about an error status of the trading API."""
    if status in _KEYS_REFUSED:
        return (
            "check ALPACA_API_KEY, ALPACA_SECRET_KEY and MDSERVICE_TRADING_URL: keys of a live "
            "account need https://api.alpaca.markets, those of a paper account "
            "https://paper-api.alpaca.markets"
        )
    return (
        "set MDSERVICE_TRADING_URL to the base of the trading API: https://api.alpaca.markets, "
        "or https://paper-api.alpaca.markets for a paper account"
    )
