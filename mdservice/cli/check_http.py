"""Whether Alpaca's REST APIs and the source of positions answer, and this machine's clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import anyio.to_thread
import attrs

from mdservice.cli.check_result import CheckResult, failed, passed, skipped
from mdservice.errors import ConfigurationError, PositionsError
from mdservice.model.position import Position
from mdservice.positions.answer import NO_CONTENT, read_answer
from mdservice.positions.file import FileAbsent, FilePositions
from mdservice.positions.parse import NOT_A_STOCK
from mdservice.urls import mask_url

if TYPE_CHECKING:
    from mdservice.settings import Settings

__all__ = ["check_clock", "check_history", "check_positions"]

_TIMEOUT_S = 8.0
_MOST_BYTES = 4 * 1024 * 1024
_MOST_SKEW_S = 5.0
_OK = 200
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
    """No answer; the text says why."""


async def check_history(settings: Settings) -> CheckResult:
    """Ask the data REST API for a latest quote, which is what repairs and the watchdog need."""
    name = "data REST"
    if settings.simulated:
        return skipped(name, "not asked for simulated prices")
    if settings.feed not in _LATEST_FEEDS:
        return skipped(name, f"has no quotes of the feed {settings.feed}")
    symbol = next((symbol for symbol in settings.symbols if symbol != "*"), "AAPL")
    url = f"{settings.rest_url}/v2/stocks/quotes/latest?symbols={symbol}&feed={settings.feed}"
    try:
        page = await _get(url, _keys(settings))
    except _Unreachable as exc:
        return failed(name, str(exc), "check the network and MDSERVICE_REST_URL")
    if page.status == _OK:
        return passed(name, f"{mask_url(settings.rest_url)} gives quotes of {settings.feed}")
    return _refused(name, settings.rest_url, page, "the keys, the plan and MDSERVICE_REST_URL")


async def check_clock(settings: Settings) -> CheckResult:
    """Ask the trading API for the market's hours, and compare its time with this machine's."""
    name = "clock"
    if settings.simulated:
        return skipped(name, "not asked for simulated prices")
    before = time.time()
    try:
        page = await _get(f"{settings.trading_url}/v2/clock", _keys(settings))
    except _Unreachable as exc:
        return failed(name, str(exc), "check the network and MDSERVICE_TRADING_URL")
    if page.status != _OK:
        what = (
            "the keys and MDSERVICE_TRADING_URL: keys of a live account need "
            "https://api.alpaca.markets"
        )
        return _refused(name, settings.trading_url, page, what)
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


async def check_positions(settings: Settings) -> CheckResult:
    """Read the positions once from where the settings say, and look at their form."""
    name, source = "positions", settings.positions
    if source == "none":
        return skipped(name, "none are followed")
    if source.startswith("file:"):
        return await _check_file(source.removeprefix("file:"))
    alpaca = source == "alpaca"
    url = f"{settings.resolved_trading_url()}/v2/positions" if alpaca else source
    try:
        page = await _get(url, _keys(settings) if alpaca else {})
    except _Unreachable as exc:
        return failed(name, str(exc), "check the network and MDSERVICE_POSITIONS")
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


async def _get(url: str, headers: Mapping[str, str]) -> _Page:
    """GET in a thread: httpx's own asynchronous streams cannot be broken off cleanly on trio."""
    return await anyio.to_thread.run_sync(_get_now, url, dict(headers), abandon_on_cancel=True)


def _get_now(url: str, headers: dict[str, str]) -> _Page:
    """GET without following redirects, which could carry the keys elsewhere."""
    import httpx

    shown = mask_url(url)
    body = bytearray()
    try:
        with (
            httpx.Client(timeout=_TIMEOUT_S) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise _Unreachable(f"{shown} answers with more than 4 MiB")
    except httpx.TimeoutException as exc:
        raise _Unreachable(f"{shown} does not answer within {_TIMEOUT_S:g} s") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise _Unreachable(f"{shown} cannot be reached: {str(exc) or type(exc).__name__}") from exc
    return _Page(response.status_code, bytes(body), _seconds(response.headers.get("date")))


def _seconds(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None
