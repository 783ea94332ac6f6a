"""Whether Alpaca's REST APIs and the source of positions answer, and this machine's clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import attrs

from mdservice.cli.check_result import CheckResult, failed, passed, skipped
from mdservice.errors import ConfigurationError, PositionsError
from mdservice.feeds.alpaca.market_clock import clock_refusal
from mdservice.model.position import Position
from mdservice.network import HttpClient, HttpFailed
from mdservice.positions.answer import NO_CONTENT, read_answer
from mdservice.positions.file import FileAbsent, FilePositions
from mdservice.positions.http import without_login
from mdservice.positions.parse import NOT_A_STOCK
from mdservice.urls import mask_url

if TYPE_CHECKING:
    from mdservice.settings import Settings

__all__ = ["check_clock", "check_history", "check_positions"]

_TIMEOUT_S = 8.0
_MOST_BYTES = 4 * 1024 * 1024
_MOST_SKEW_S = 5.0
_OK = 200
_NOT_FOUND = 404
_REFUSED = (401, 403)
_LATEST_FEEDS = ("iex", "sip", "delayed_sip", "boats", "overnight")
_GIVE = 'give a list or {"positions": [...]}'


@attrs.frozen
class _Page:
    """An answer: its status, its body, and the server's time in seconds since 1970."""

    status: int
    body: bytes
    date_s: float | None


class _Unreachable(Exception):
    """No answer; the text says why.

    Args:
        message: The reason.
        configuration: Whether a variable of the environment is wrong, which the text names.
    """

    def __init__(self, message: str, *, configuration: bool = False) -> None:
        super().__init__(message)
        self.configuration = configuration


async def check_history(settings: Settings, http: HttpClient | None = None) -> CheckResult:
    """Ask the data REST API for a latest quote, which is what repairs and the watchdog need."""
    name = "data REST"
    if settings.simulated:
        return skipped(name, "not asked for simulated prices")
    if settings.feed not in _LATEST_FEEDS:
        return skipped(name, f"has no quotes of the feed {settings.feed}")
    symbol = next((symbol for symbol in settings.symbols if symbol != "*"), "AAPL")
    url = f"{settings.rest_url}/v2/stocks/quotes/latest?symbols={symbol}&feed={settings.feed}"
    try:
        page = await _get(url, _keys(settings), http)
    except _Unreachable as exc:
        return _no_answer(name, exc, "MDSERVICE_REST_URL")
    if page.status == _OK:
        return passed(name, f"{mask_url(settings.rest_url)} gives quotes of {settings.feed}")
    return _refused(name, settings.rest_url, page, "the keys, the plan and MDSERVICE_REST_URL")


async def check_clock(settings: Settings, http: HttpClient | None = None) -> CheckResult:
    """Ask the trading API for the market's hours, and compare its time with this machine's."""
    name = "clock"
    if settings.simulated:
        return skipped(name, "not asked for simulated prices")
    before = time.time()
    try:
        page = await _get(f"{settings.trading_url}/v2/clock", _keys(settings), http)
    except _Unreachable as exc:
        return _no_answer(name, exc, "MDSERVICE_TRADING_URL")
    if page.status != _OK:
        return failed(
            name,
            f"{mask_url(settings.trading_url)}/v2/clock answers HTTP {page.status}, so the "
            "market would count as open",
            clock_refusal(page.status),
            configuration=page.status in (*_REFUSED, _NOT_FOUND),
        )
    hours = f"{mask_url(settings.trading_url)} tells the market's hours"
    if page.date_s is None:
        return passed(name, hours)
    # The Date header is cut to the second, and was written while we waited.
    skew_s = (before + time.time()) / 2 - (page.date_s + 0.5)
    if abs(skew_s) <= _MOST_SKEW_S:
        return passed(name, f"{hours}; this machine's clock agrees within {_MOST_SKEW_S:g} s")
    word = "fast" if skew_s > 0 else "slow"
    return failed(
        name,
        f"this machine's clock is {abs(skew_s):,.0f} s {word}, so quotes look too old or too new",
        "set it by NTP: timedatectl set-ntp true",
    )


async def check_positions(settings: Settings, http: HttpClient | None = None) -> CheckResult:
    """Read the positions once from where the settings say, and look at their form."""
    name, source = "positions", settings.positions
    if source == "none":
        return skipped(name, "none are followed")
    if source.startswith("file:"):
        return await _check_file(source.removeprefix("file:"))
    alpaca = source == "alpaca"
    url = f"{settings.resolved_trading_url()}/v2/positions" if alpaca else source
    try:
        page = await _get(url, _keys(settings) if alpaca else {}, http)
    except _Unreachable as exc:
        return _no_answer(name, exc, "MDSERVICE_POSITIONS")
    if page.status not in (_OK, NO_CONTENT):
        return _refused(name, url, page, "MDSERVICE_POSITIONS" + (" and the keys" * alpaca))
    try:
        return _judged(read_answer(page.status, page.body, mask_url(url), _GIVE), mask_url(url))
    except PositionsError as exc:
        return failed(name, str(exc), _GIVE)


async def _check_file(path: str) -> CheckResult:
    name = "positions"
    try:
        source = FilePositions(path)
    except ConfigurationError as exc:
        return failed(name, str(exc), configuration=True)
    try:
        return _judged(await source.fetch(), source.address)
    except FileAbsent:
        return failed(
            name,
            f"there is no file {source.address}; the service would wait for it",
            'create it, with [] or {"positions": []}',
        )
    except PositionsError as exc:
        return failed(name, str(exc), _GIVE)


def _judged(positions: Sequence[Position], where: str) -> CheckResult:
    """Every position whose form is right passes, also those that are not followed."""
    others = 0
    for number, position in enumerate(positions, 1):
        if position.problem == NOT_A_STOCK:
            others += 1
        elif position.problem is not None:
            return failed(
                "positions",
                f"{where}: position {number} {position.problem}",
                "give each position its symbol, qty and avg_entry_price",
            )
    not_followed = f", {others} of them {NOT_A_STOCK} and not followed" if others else ""
    return passed("positions", f"{where} holds {len(positions)}{not_followed}")


def _keys(settings: Settings) -> dict[str, str]:
    return {
        "APCA-API-KEY-ID": settings.api_key or "",
        "APCA-API-SECRET-KEY": settings.secret_key or "",
    }


def _refused(name: str, url: str, page: _Page, what: str) -> CheckResult:
    return failed(
        name,
        f"{mask_url(url)} answers HTTP {page.status}",
        f"check {what}",
        configuration=page.status in _REFUSED,
    )


def _no_answer(name: str, exc: _Unreachable, setting: str) -> CheckResult:
    advice = "" if exc.configuration else f"check the network and {setting}"
    return failed(name, str(exc), advice, configuration=exc.configuration)


async def _get(url: str, headers: Mapping[str, str], http: HttpClient | None) -> _Page:
    """GET as the service does: with the same proxies, certificates and rules."""
    bare, auth = without_login(url)
    shown = mask_url(url)
    client = http or HttpClient()
    try:
        client.prepare(bare)
    except ConfigurationError as exc:
        raise _Unreachable(str(exc), configuration=True) from exc
    try:
        answer = await client.get(
            bare, headers=headers, auth=auth, timeout_s=_TIMEOUT_S, most_bytes=_MOST_BYTES
        )
    except HttpFailed as exc:
        if exc.kind == "timeout":
            raise _Unreachable(f"{shown} does not answer within {_TIMEOUT_S:g} s") from exc
        joined = (
            f"{shown} {exc}"
            if exc.kind in ("size", "encoding", "url")
            else (f"{shown} cannot be reached: {exc}")
        )
        raise _Unreachable(joined) from exc
    finally:
        if http is None:
            await client.aclose()
    return _Page(answer.status, answer.body, _seconds(answer.headers.get("date")))


def _seconds(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None
