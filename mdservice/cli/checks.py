"""What ``mdservice check`` tries: settings, socket, relay, journal, feed, REST, Redis and more.

A check does not raise for what it looks at; what it found is in its result.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import anyio
import anyio.to_thread
import attrs
import msgspec

from mdservice.cli.options import causes
from mdservice.client.http import NoAnswer, ask
from mdservice.errors import (
    ConfigurationError,
    EmbeddedServerError,
    FeedError,
    FeedRefused,
    JournalInUse,
    MDServiceError,
    PositionsError,
    PositionsRefused,
    StoreError,
)
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import (
    CRYPTO,
    FEEDS,
    OPTIONS,
    STOCKS,
    Feed,
    FeedName,
    feed_of,
    kinds_of,
)
from mdservice.model.kinds import NEWS, QUOTES
from mdservice.model.position import Position
from mdservice.model.symbol import EVERY_SYMBOL, pair_without_slash
from mdservice.observability.masking import mask_url
from mdservice.positions.parse import NOT_FOLLOWED
from mdservice.positions.sources import (
    ALPACA,
    NO_CONTENT,
    OK,
    FileAbsent,
    FilePositions,
    read_answer,
    without_login,
)
from mdservice.redis_io.names import RedisNames
from mdservice.runtime.market_clock import clock_refusal
from mdservice.runtime.network import HttpClient, HttpFailed
from mdservice.runtime.runtime_dir import can_serve_at
from mdservice.settings.feeds import STREAM_PATHS, url_variable
from mdservice.settings.parsers import host_and_port, is_loopback

if TYPE_CHECKING:
    from mdservice.feed.driver import Driver
    from mdservice.redis_io.locator import Found
    from mdservice.redis_io.rights import RedisRights
    from mdservice.settings import Settings

__all__ = [
    "CheckResult",
    "check_clock",
    "check_feed",
    "check_history",
    "check_journal",
    "check_on_trip",
    "check_positions",
    "check_redis",
    "check_relay",
    "check_settings",
    "check_socket",
    "check_trading_stream",
    "failed",
    "log_in",
    "passed",
    "run_checks",
    "skipped",
    "warned",
]

_NAMES: Mapping[FeedName, str] = {
    feed.name: "feed" if feed is STOCKS else feed.name for feed in FEEDS
}
"""The name of the check of each feed's connection."""
_REST_NAMES: Mapping[FeedName, str] = {
    feed.name: "data REST" if feed is STOCKS else f"{feed.name} REST" for feed in FEEDS
}
"""The name of the check of each feed's REST API."""
_STREAM = "trading stream"
_TIMEOUT_S = 20.0
_FEED_TIMEOUT_S = 35.0
"""Two drivers, each with 15 s to log in."""
_SILENT_S = 4.0
"""After this time, a line names the check that is still running."""
_ASK_TIMEOUT_S = 3.0
_HTTP_TIMEOUT_S = 8.0
_MOST_BYTES = 4 * 1024 * 1024
_MOST_SKEW_S = 5.0
_LEAST_FREE_BYTES = 1_000_000_000
_NOT_FOUND = 404
_REFUSED = (401, 403)
_UNAVAILABLE = 503
_LATEST_FEEDS = ("iex", "sip", "delayed_sip", "boats", "overnight")
_MOST_ORDERS = 500
_ACCOUNT = (
    "/v2/account",
    "/v2/account/configurations",
    f"/v2/orders?status=open&limit={_MOST_ORDERS}",
)
_GIVE = 'give a list or {"positions": [...]}'


async def run_checks(
    settings: Settings,
    *,
    show: Callable[[CheckResult], None],
    waiting: Callable[[str, float], None] = lambda _name, _limit_s: None,
) -> list[CheckResult]:
    """Run all checks, one after the other. A feed takes 35 s at most, each other check 20 s.

    Args:
        settings: Complete settings, see :meth:`Settings.require_runnable`.
        show: Called with each result.
        waiting: Called with the name and the limit of a check that takes more than 4 s.
    """
    http = HttpClient()
    running = await anyio.to_thread.run_sync(find_running, settings, abandon_on_cancel=True)
    feeds = _wanted_feeds(settings)
    checks: dict[str, Callable[[], Awaitable[CheckResult]]] = {
        "settings": partial(check_settings, settings),
        "socket": partial(check_socket, settings, running),
        **({"relay": partial(check_relay, settings, running)} if settings.relay else {}),
        **(
            {"journal": partial(check_journal, settings.journal, running)}
            if settings.journal
            else {}
        ),
        **{_NAMES[feed.name]: partial(check_feed, settings, running, feed) for feed in feeds},
        **{_REST_NAMES[feed.name]: partial(check_history, settings, http, feed) for feed in feeds},
        "clock": partial(check_clock, settings, http),
        "redis": partial(check_redis, settings),
        "positions": partial(check_positions, settings, http),
        **({_STREAM: partial(check_trading_stream, settings)} if _is_alpacas(settings) else {}),
        **({"on trip": partial(check_on_trip, settings, http)} if settings.on_trip else {}),
    }
    results = []
    try:
        for name, check in checks.items():
            limit_s = _FEED_TIMEOUT_S if name in _NAMES.values() else _TIMEOUT_S
            result = failed(name, f"nothing within {limit_s:g} s", "check the network")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_report_later, partial(waiting, name, limit_s))
                with anyio.move_on_after(limit_s):
                    result = await check()
                tasks.cancel_scope.cancel()
            show(result)
            results.append(result)
    finally:
        await http.aclose()
    return results


def _wanted_feeds(settings: Settings) -> tuple[Feed, ...]:
    """The stock feed, which is always connected; and the others that the settings name or want."""
    wanted: set[str] = {"stocks", *(feed_of(symbol).name for symbol in settings.symbols)}
    choosing = {"crypto": "crypto_feed", "options": "options_feed", "news": "news"}
    for name, setting in choosing.items():
        if {setting, f"{name}_url"} & settings.sources.keys():
            wanted.add(name)
    return tuple(feed for feed in FEEDS if feed.name in wanted)


async def _report_later(report: Callable[[], None]) -> None:
    await anyio.sleep(_SILENT_S)
    report()


def find_running(settings: Settings) -> str | None:
    """The state of the service at the socket; None if none answers."""
    try:
        answer = ask(settings.socket, "GET", "/status", timeout_s=_ASK_TIMEOUT_S)
    except (NoAnswer, ConfigurationError):
        return None
    feed = answer.content.get("feed")
    feed = feed if isinstance(feed, dict) else {}
    connected = "connected" if feed.get("connected") else "not connected"
    error = f", last error: {feed['last_error']}" if feed.get("last_error") else ""
    return f"{answer.content.get('state', 'running')}, {feed.get('name', '-')} {connected}{error}"


@attrs.frozen
class CheckResult:
    """One line of ``mdservice check``.

    Attributes:
        name: What was checked: ``feed``.
        outcome: ``ok``, ``warn``, ``FAIL`` or ``skip``.
        detail: The finding.
        advice: What to do; empty if the detail says it.
        configuration: Whether only other settings fix the failure (exit code 78).
    """

    name: str
    outcome: Literal["ok", "warn", "FAIL", "skip"]
    detail: str
    advice: str = ""
    configuration: bool = False


def passed(name: str, detail: str) -> CheckResult:
    """It works."""
    return CheckResult(name, "ok", detail)


def warned(name: str, detail: str, advice: str) -> CheckResult:
    """A part of it works."""
    return CheckResult(name, "warn", detail, advice)


def skipped(name: str, detail: str) -> CheckResult:
    """It was not checked, for this reason."""
    return CheckResult(name, "skip", detail)


def failed(name: str, detail: str, advice: str = "", *, configuration: bool = False) -> CheckResult:
    """It does not work."""
    return CheckResult(name, "FAIL", detail, advice, configuration)


async def check_settings(settings: Settings) -> CheckResult:
    """Say where the settings come from. They are known to be valid."""
    name = "settings"
    kind = "simulated prices" if settings.simulated else f"Alpaca's feed {settings.feed}"
    if not settings.sources:
        return passed(name, f"all are defaults: {kind}, set ALPACA_API_KEY for real ones")
    found = ", ".join(f"{key} ({source})" for key, source in settings.sources.items())
    for symbol in settings.symbols:
        if pair := pair_without_slash(symbol):
            detail = f"{kind}; {found}; {symbol} is taken for a stock's symbol"
            return warned(name, detail, f"write the crypto pair with its slash: {pair}")
    return passed(name, f"{kind}; {found}")


async def check_socket(settings: Settings, running: str | None) -> CheckResult:
    """Check that the API's socket can be created."""
    name = "socket"
    if running is not None:
        return passed(name, f"a service runs at {settings.socket}: {running}")
    try:
        can_serve_at(settings.socket)
    except ConfigurationError as exc:
        return failed(name, str(exc), configuration=True)
    return passed(name, f"{settings.socket} is free")


async def check_relay(settings: Settings, running: str | None) -> CheckResult:
    """Log in to the relay as its clients do, or find its address free where no service runs."""
    found = await anyio.to_thread.run_sync(_try_relay, settings, running, abandon_on_cancel=True)
    exposed = not is_loopback(host_and_port(str(settings.relay))[0]) and settings.relay_cert is None
    if found.outcome == "ok" and exposed:
        advice = "set MDSERVICE_RELAY_CERT and MDSERVICE_RELAY_KEY_FILE, or use a private network"
        return warned("relay", f"{found.detail}; keys and prices travel without encryption", advice)
    return found


def _try_relay(settings: Settings, running: str | None) -> CheckResult:
    from websockets.exceptions import InvalidStatus, WebSocketException

    name, shown = "relay", f"{settings.relay_url}"
    restart = "restart the service if its settings have changed since its start"
    trouble = _listening_trouble(str(settings.relay))
    if trouble is None and running is None:
        return passed(name, f"{shown} is free")
    if trouble is None:
        return warned(name, f"nothing listens at {shown}, though a service runs", restart)
    if running is None:
        return _not_to_be_had(settings, f"cannot listen at {shown}: {trouble.strerror or trouble}")
    path = STREAM_PATHS["stocks"].get(settings.feed, "/v2/iex")
    try:
        answer = _relay_answer(settings, path)
    except InvalidStatus as exc:
        status = exc.response.status_code
        if status == _UNAVAILABLE:
            return warned(name, f"{shown} answers HTTP 503", "wait until the service has started")
        answer = f"answers HTTP {status}"
    except (OSError, WebSocketException, ValueError) as exc:
        answer = f"is no stream of Alpaca's: {exc}"
    if answer is None:
        return passed(name, f"{shown}{path}: logged in")
    return failed(name, f"{shown}{path} {answer}", restart)


async def check_journal(folder: Path, running: str | None) -> CheckResult:
    """Check that the journal can be written to the folder."""
    return await anyio.to_thread.run_sync(_try_journal, folder, running, abandon_on_cancel=True)


def _try_journal(folder: Path, running: str | None) -> CheckResult:
    from mdservice.journal.recorder import open_folder

    name = "journal"
    # Unlike Path.exists, this does not raise for a folder that may not be looked into.
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110
    try:
        if there == folder:
            open_folder(folder).close()
        elif not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            return failed(
                name,
                f"{folder} cannot be made: no right to write to {there}",
                "choose another folder in MDSERVICE_JOURNAL",
                configuration=True,
            )
    except JournalInUse as exc:
        if running is not None:
            return passed(name, f"a service records into {folder}")
        return failed(name, str(exc), configuration=True)
    except ConfigurationError as exc:
        return failed(name, str(exc), configuration=True)
    free_bytes = shutil.disk_usage(there).free
    found = f"{folder} can be written; {free_bytes / 1e9:.1f} GB are free"
    if free_bytes < _LEAST_FREE_BYTES:
        return warned(name, found, "free some space, or set MDSERVICE_JOURNAL_BYTES")
    return passed(name, found)


def _listening_trouble(address: str) -> OSError | None:
    """Why a server could not listen at the address; None if it is free."""
    import socket

    try:
        host, port = host_and_port(address)
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(where)
    except OSError as exc:
        return exc
    return None


def _relay_answer(settings: Settings, path: str) -> str | None:
    """Log in to the relay with the first of its keys.

    Returns:
        None if it accepts the login; otherwise what it answers.

    Raises:
        OSError
        WebSocketException
        ValueError: Its messages are not Alpaca's.
    """
    import json
    import ssl

    from websockets.sync.client import connect

    address = str(settings.relay)
    for every, own in (("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")):
        address = own + address.removeprefix(every) if address.startswith(every) else address
    tls = None
    if settings.relay_cert is not None:
        # Its name need not be that of this address: the certificate itself is compared.
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    key, secret = next(iter(settings.relay_keys.items()), ("mdservice", "check"))
    with connect(
        f"{'ws' if tls is None else 'wss'}://{address}{path}",
        ssl=tls,
        proxy=None,
        open_timeout=_ASK_TIMEOUT_S,
        close_timeout=_ASK_TIMEOUT_S,
    ) as client:
        if settings.relay_cert is not None:
            served = client.socket.getpeercert(binary_form=True)  # type: ignore[attr-defined]
            own_cert = settings.relay_cert.read_text()
            own_cert = own_cert[own_cert.index("-----BEGIN CERTIFICATE") :]
            end = "-----END CERTIFICATE-----"
            first = own_cert.partition(end)[0] + end
            if served != ssl.PEM_cert_to_DER_cert(first):
                return f"has another certificate than that of {settings.relay_cert}"
        _control(client.recv(_ASK_TIMEOUT_S))
        client.send(json.dumps({"action": "auth", "key": key, "secret": secret}))
        return _control(client.recv(_ASK_TIMEOUT_S))


def _control(frame: str | bytes) -> str | None:
    """None for a success; otherwise the error of a control message of Alpaca's.

    Raises:
        ValueError: It is none.
    """
    import json

    content = json.loads(frame)
    message = content[0] if isinstance(content, list) and content else {}
    if isinstance(message, dict) and message.get("T") == "success":
        return None
    if isinstance(message, dict) and message.get("T") == "error":
        return f"refuses the login with {message.get('code')}: {message.get('msg')}"
    raise ValueError("its first messages are not Alpaca's")


def _not_to_be_had(settings: Settings, reason: str) -> CheckResult:
    advice = "set MDSERVICE_RELAY to another address, or to off"
    if settings.relay_is_default:
        return warned("relay", f"{reason}, so the service would take another port", advice)
    return failed("relay", reason, advice, configuration=True)


async def check_feed(settings: Settings, running: str | None, feed: Feed = STOCKS) -> CheckResult:
    """Connect and log in as the service would, then disconnect.

    Args:
        settings: The feed, the keys and the driver. Starts the embedded simulator if needed.
        running: The state of a running service, or None. A running service may hold the
            account's one connection to the feed, so the feed is not checked.
        feed: The feed to check.
    """
    name = _NAMES[feed.name]
    if running is not None and not settings.simulator_embedded:
        return skipped(name, f"the running service holds the account's connection: {running}")
    from mdservice.feed.alpaca.drivers import make_drivers
    from mdservice.feed.driver import LONGEST_OPEN_TIMEOUT_S, LoginLimit

    async with AsyncExitStack() as stack:
        if settings.simulator_embedded:
            from mdservice.simulator import SimulatorConfig, open_simulator

            config = SimulatorConfig(rate=0, connection_limit=None)
            simulator = await stack.enter_async_context(open_simulator(config))
            settings = attrs.evolve(settings, feed="simulator", feed_url=simulator.url)
        try:
            # One attempt gets the time that a running service allows after several.
            limit = LoginLimit(LONGEST_OPEN_TIMEOUT_S)
            drivers = make_drivers(settings, feed, limit)
        except ConfigurationError as exc:
            return failed(name, str(exc), configuration=True)
        shown = settings.feed_name if settings.simulated else settings.feed_name_of(feed.name)
        return await log_in(shown, drivers, feed)


async def log_in(shown: str, drivers: Sequence[Driver], feed: Feed = STOCKS) -> CheckResult:
    """Log in with the first driver that can, as ``auto`` would.

    A refusal ends the check, since the feed would refuse another driver too.
    """
    name = _NAMES[feed.name]
    troubles: list[str] = []
    configuration = False
    for driver in drivers:
        try:
            async with driver.connect(Followed(), time.time_ns):
                before = f" ({'; '.join(troubles)})" if troubles else ""
                return passed(name, f"{shown}: logged in by {driver.name}{before}")
        except (MDServiceError, BaseExceptionGroup) as exc:
            refused = _foreseen(exc)
            if isinstance(refused, FeedRefused):
                return _feed_refused(name, f"{shown}: {refused}", refused)
            configuration = isinstance(refused, ConfigurationError)
            troubles.append(f"{driver.name}: {refused}")
    set_url = url_variable(feed.name)
    advice = "" if configuration else f"check the network, and {set_url} where it is set"
    return failed(name, "; ".join(troubles), advice, configuration=configuration)


def _foreseen(exc: BaseException) -> MDServiceError:
    """The one error of a connection. Unexpected errors propagate."""
    found = list(causes(exc))
    for cause in found:
        if not isinstance(cause, (FeedError, ConfigurationError)):
            raise exc
    return next(cause for cause in found if isinstance(cause, MDServiceError))


def _feed_refused(name: str, detail: str, refused: FeedRefused) -> CheckResult:
    advice = ""
    if refused.remedy == "wait_for_slot":
        advice = (
            "a running mdservice may be that program: look for it with `mdservice status`, or on "
            "the account's other machines"
        )
    return failed(name, detail, advice, configuration=refused.remedy == "fix")


async def check_history(
    settings: Settings, http: HttpClient | None = None, feed: Feed = STOCKS
) -> CheckResult:
    """Ask the data REST API for a latest record, as repairs and the liveness check do."""
    name, records = _REST_NAMES[feed.name], "articles" if feed.name == "news" else "quotes"
    if settings.simulated:
        return skipped(name, "not asked for simulated prices")
    if feed is STOCKS and settings.feed not in _LATEST_FEEDS:
        return skipped(name, f"has no quotes of the feed {settings.feed}")
    if not settings.history_known_of(feed.name):
        return warned(
            name,
            f"not asked: {url_variable(feed.name)} is set, MDSERVICE_REST_URL is not, so gaps stay",
            "set MDSERVICE_REST_URL to the REST API that has the records of this stream",
        )
    base, shown = settings.resolved_rest_url(), mask_url(settings.resolved_rest_url())
    try:
        page = await _get(f"{base}{_latest_path(settings, feed)}", _keys(settings), http)
    except _Unreachable as exc:
        return _no_answer(name, exc, "MDSERVICE_REST_URL")
    if page.status == OK:
        return passed(name, f"{shown} gives {records} of {settings.feed_name_of(feed.name)}")
    return _http_refused(name, base, page, "the keys, the plan and MDSERVICE_REST_URL")


def _latest_path(settings: Settings, feed: Feed) -> str:
    """The path and the query for the latest record of one of the settings' symbols."""
    name = settings.feed_name_of(feed.name)
    symbols = [s for s in settings.symbols if s != EVERY_SYMBOL and feed_of(s) is feed]
    if feed is STOCKS:
        return f"/v2/stocks/quotes/latest?symbols={symbols[0] if symbols else 'AAPL'}&feed={name}"
    if feed is CRYPTO:
        symbol = quote(symbols[0] if symbols else "BTC/USD", safe="")
        return f"/v1beta3/crypto/{name}/latest/quotes?symbols={symbol}"
    if feed is OPTIONS and symbols:
        return f"/v1beta1/options/quotes/latest?symbols={symbols[0]}&feed={name}"
    if feed is OPTIONS:
        return f"/v1beta1/options/snapshots/AAPL?feed={name}&limit=1"
    return "/v1beta1/news?limit=1"


async def check_clock(settings: Settings, http: HttpClient | None = None) -> CheckResult:
    """Ask the trading API for the market hours, and compare its time with this machine's."""
    name = "clock"
    if settings.simulated:
        return skipped(name, "not asked for simulated prices")
    before = time.time()
    try:
        page = await _get(f"{settings.trading_url}/v2/clock", _keys(settings), http)
    except _Unreachable as exc:
        return _no_answer(name, exc, "MDSERVICE_TRADING_URL")
    if page.status != OK:
        return failed(
            name,
            f"{mask_url(settings.trading_url)}/v2/clock answers HTTP {page.status}, so the "
            "market would count as open",
            clock_refusal(page.status),
            configuration=page.status in (*_REFUSED, _NOT_FOUND),
        )
    hours = f"{mask_url(settings.trading_url)} gives the market hours"
    if page.date_s is None:
        return passed(name, hours)
    # The Date header has whole seconds, and was written during the request.
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
    """Read the positions once from their source, and check their format."""
    name, source = "positions", settings.positions
    if source == "none":
        return skipped(name, "none are followed")
    if source.startswith("file:"):
        return await _check_file(source.removeprefix("file:"))
    alpaca = source == ALPACA
    url = f"{settings.resolved_trading_url()}/v2/positions" if alpaca else source
    try:
        page = await _get(url, _keys(settings) if alpaca else {}, http)
    except _Unreachable as exc:
        return _no_answer(name, exc, "MDSERVICE_POSITIONS")
    if page.status not in (OK, NO_CONTENT):
        return _http_refused(name, url, page, "MDSERVICE_POSITIONS" + (" and the keys" * alpaca))
    try:
        return _judged(read_answer(page.status, page.body, mask_url(url), _GIVE), mask_url(url))
    except PositionsError as exc:
        return failed(name, str(exc), _GIVE)


def _is_alpacas(settings: Settings) -> bool:
    """Whether the service or the gateway follows the trading stream."""
    return ALPACA in (settings.positions, settings.gateway_positions)


async def check_trading_stream(settings: Settings) -> CheckResult:
    """Log in to the stream of trade updates as the service would, then disconnect."""
    from mdservice.positions.trading_stream import open_trading_stream

    advice = "until it can be followed, fills show only when the positions are asked for"
    try:
        stream = open_trading_stream(ALPACA, settings)
    except ConfigurationError as exc:
        return failed(_STREAM, str(exc), configuration=True)
    if stream is None:
        return skipped(_STREAM, "there is no key")
    try:
        async with stream.connect():
            return passed(_STREAM, f"{stream.address}: logged in")
    except PositionsRefused as exc:
        return failed(_STREAM, str(exc), advice)
    except PositionsError as exc:
        return warned(_STREAM, str(exc), advice)


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
    """Accept every position with a valid format, also those whose symbols are not subscribed."""
    others = 0
    for number, position in enumerate(positions, 1):
        if position.problem == NOT_FOLLOWED:
            others += 1
        elif position.problem is not None:
            return failed(
                "positions",
                f"{where}: position {number} {position.problem}",
                "give each position its symbol, qty and avg_entry_price",
            )
    not_followed = f", {others} of them of an asset class without a feed" if others else ""
    return passed("positions", f"{where} holds {len(positions)}{not_followed}")


async def check_on_trip(settings: Settings, http: HttpClient | None = None) -> CheckResult:
    """Say what a trip of the breaker would do at the broker, and change nothing there."""
    from mdservice.gateway.on_trip import TradingAccount
    from mdservice.gateway.risk import make_limits

    name, client = "on trip", http or HttpClient()
    try:
        account = TradingAccount(settings, client)
        answers = [await _get(account.url + path, account.headers, client) for path in _ACCOUNT]
    except ConfigurationError as exc:
        return failed(name, str(exc), configuration=True)
    except _Unreachable as exc:
        return _no_answer(name, exc, "MDSERVICE_TRADING_URL")
    finally:
        if http is None:
            await client.aclose()
    for path, page in zip(_ACCOUNT, answers, strict=True):
        if page.status != OK:
            shown = account.url + path.partition("?")[0]
            return _http_refused(name, shown, page, "the keys and MDSERVICE_TRADING_URL")
    bodies = [page.body for page in answers]
    try:
        state, configuration = map(_decode_account, bodies[:2])
        orders = len(_decode_orders(bodies[2]))
    except (ValueError, RecursionError):
        advice = "check MDSERVICE_TRADING_URL"
        return failed(name, f"{mask_url(account.url)} answers otherwise than Alpaca", advice)
    more = "at least " if orders == _MOST_ORDERS else ""
    count = f"{more}{orders} open {'order' if orders == 1 else 'orders'}"
    would = {"suspend_trade": "suspend trading", "cancel_orders": f"cancel {count}"}
    what = " and ".join(would[action] for action in would if action in settings.on_trip)
    detail = f"a trip would {what} at {mask_url(account.url)}; this check changes nothing"
    has_limits = bool(make_limits(settings.limits, settings.alerts).rules)
    for is_so, problem, advice in (
        (state.account_blocked or state.trading_blocked, "the account is blocked", "ask Alpaca"),
        (
            configuration.suspend_trade,
            "trading is suspended already",
            "allow it again at the broker; a reset of the breaker does not",
        ),
        (not has_limits, "no limit is set, so nothing trips", "set MDSERVICE_LIMITS"),
    ):
        if is_so:
            return warned(name, f"{detail}; {problem}", advice)
    return passed(name, detail)


class _Account(msgspec.Struct):
    """A part of the account, or of its configurations."""

    account_blocked: bool = False
    trading_blocked: bool = False
    suspend_trade: bool = False


_decode_account = msgspec.json.Decoder(_Account).decode
_decode_orders = msgspec.json.Decoder(list[msgspec.Raw]).decode


async def check_redis(settings: Settings) -> CheckResult:
    """Check the rights that ``run`` needs in Redis, or find the program of the embedded server."""
    if settings.redis_url is None:
        return await _check_embedded_server()

    from mdservice.redis_io.locator import SentinelLocator, locator_of
    from mdservice.redis_io.rights import try_rights

    name = "redis"
    news = (NEWS.channel,) if settings.news else ()
    advice = "check that the server runs, MDSERVICE_REDIS_URL and the password in it"
    try:
        address = locator_of(settings.redis_url, timeout_s=_ASK_TIMEOUT_S)
    except ConfigurationError as exc:
        return failed(name, str(exc), configuration=True)
    names = RedisNames(settings.key_prefix, clustered=address.clustered, sharded=address.sharded)
    where, problem = address.shown, ""
    try:
        if isinstance(address, SentinelLocator):
            found, problem = _describe_sentinels(await address.ask_all())
            where = f"{where} ({found})"
        rights = await try_rights(
            address,
            names,
            event_log=settings.event_log,
            renew_prices=settings.renew_prices,
            timeout_s=_ASK_TIMEOUT_S,
            kinds=kinds_of((QUOTES.channel, *settings.channels, *news)),
            account=settings.positions == ALPACA,
            group=settings.group,
        )
    except StoreError as exc:
        return failed(name, str(exc), advice)
    rules = names.rights(settings.event_log, group=settings.group is not None)
    allow = f"ACL SETUSER {address.user} {rules}"
    result = _describe_rights(rights, where, allow)
    if problem and result.outcome == "ok":
        return warned(name, f"{result.detail}; {problem}", "start or correct the sentinels")
    return result


def _describe_sentinels(answers: Sequence[Found]) -> tuple[str, str]:
    """What the sentinels know, and what is wrong with it, or ""."""
    named = [one.primary for one in answers if one.primary is not None]
    primaries = sorted({f"{host}:{port}" for host, port in named})
    replicas = sorted({f"{host}:{port}" for one in answers for host, port in one.replicas})
    detail = (
        f"{len(named)} of {len(answers)} sentinels name the primary {' or '.join(primaries)}, "
        f"replicas: {', '.join(replicas) or 'none'}"
    )
    problems = [one.problem for one in answers if one.problem is not None]
    if len(primaries) > 1:
        problems.insert(0, "the sentinels disagree")
    return detail, "; ".join(problems)


async def _check_embedded_server() -> CheckResult:
    from mdservice.redis_io.embedded import find_server

    try:
        binary = await anyio.to_thread.run_sync(find_server)
    except EmbeddedServerError as exc:
        return failed("redis", str(exc))
    return passed("redis", f"an embedded server will be started ({binary.name})")


def _describe_rights(rights: RedisRights, where: str, allow: str) -> CheckResult:
    from mdservice.redis_io.replies import describe_refusal

    name = "redis"
    if rights.missing:
        return failed(name, f"{where} does not allow this user {', '.join(rights.missing)}", allow)
    if rights.refused is not None:
        return failed(name, describe_refusal(where, rights.refused))
    if rights.reduced:
        return warned(
            name,
            f"{where} accepts writes, but does not allow this user {', '.join(rights.reduced)}",
            allow,
        )
    return passed(name, f"{where} answers and accepts writes")


@attrs.frozen
class _Page:
    """An HTTP answer: its status, its body, and the server's time in seconds since 1970."""

    status: int
    body: bytes
    date_s: float | None


class _Unreachable(Exception):
    """No answer; the text says why.

    Args:
        message: The reason.
        configuration: Whether the reason is a wrong environment variable, which the text names.
    """

    def __init__(self, message: str, *, configuration: bool = False) -> None:
        super().__init__(message)
        self.configuration = configuration


def _keys(settings: Settings) -> dict[str, str]:
    return {
        "APCA-API-KEY-ID": settings.api_key or "",
        "APCA-API-SECRET-KEY": settings.secret_key or "",
    }


def _http_refused(name: str, url: str, page: _Page, what: str) -> CheckResult:
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
            bare,
            headers=headers,
            auth=auth,
            timeout_s=_HTTP_TIMEOUT_S,
            most_bytes=_MOST_BYTES,
        )
    except HttpFailed as exc:
        if exc.kind == "timeout":
            raise _Unreachable(f"{shown} does not answer within {_HTTP_TIMEOUT_S:g} s") from exc
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
