"""What ``mdservice check`` tries, in order, and the checks that need no feed and no HTTP.

A check does not raise for what it looks at; what it found is in its result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from mdservice.api_client import NoAnswer, ask
from mdservice.cli.check_feed import NAME as FEED
from mdservice.cli.check_feed import check_feed
from mdservice.cli.check_http import check_clock, check_history, check_positions
from mdservice.cli.check_result import CheckResult, failed, passed, warned
from mdservice.errors import ConfigurationError, EmbeddedServerError, StoreError
from mdservice.model.redis_layout import RedisNames
from mdservice.network import HttpClient
from mdservice.runtime_folder import can_serve_at

if TYPE_CHECKING:
    from mdservice.settings import Settings
    from mdservice.sinks.redis_link import RedisAddress
    from mdservice.sinks.redis_rights import RedisRights

__all__ = ["CheckResult", "check_redis", "check_settings", "check_socket", "run_checks"]

_TIMEOUT_S = 20.0
_FEED_TIMEOUT_S = 35.0
"""Two drivers, of which each may log in for 15 s."""
_SILENT_S = 4.0
"""After this time the person at the terminal learns what is waited for."""
_ASK_TIMEOUT_S = 3.0


async def run_checks(
    settings: Settings,
    *,
    show: Callable[[CheckResult], None],
    waiting: Callable[[str, float], None] = lambda _name, _limit_s: None,
) -> list[CheckResult]:
    """Try everything, one after the other; the feed takes 35 s at most, the others 20 s.

    Args:
        settings: What to try. They are complete, see :meth:`Settings.require_runnable`.
        show: Gets each result as soon as it is there.
        waiting: Gets the name of a check that takes more than some seconds, and its limit.
    """
    http = HttpClient()
    running = await anyio.to_thread.run_sync(find_running, settings, abandon_on_cancel=True)
    checks: dict[str, Callable[[], Awaitable[CheckResult]]] = {
        "settings": partial(check_settings, settings),
        "socket": partial(check_socket, settings, running),
        FEED: partial(check_feed, settings, running),
        "data REST": partial(check_history, settings, http),
        "clock": partial(check_clock, settings, http),
        "redis": partial(check_redis, settings),
        "positions": partial(check_positions, settings, http),
    }
    results = []
    try:
        for name, check in checks.items():
            limit_s = _FEED_TIMEOUT_S if name == FEED else _TIMEOUT_S
            result = failed(name, f"nothing within {limit_s:g} s", "check the network")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_tell_later, partial(waiting, name, limit_s))
                with anyio.move_on_after(limit_s):
                    result = await check()
                tasks.cancel_scope.cancel()
            show(result)
            results.append(result)
    finally:
        await http.aclose()
    return results


async def _tell_later(tell: Callable[[], None]) -> None:
    await anyio.sleep(_SILENT_S)
    tell()


def find_running(settings: Settings) -> str | None:
    """How the service that answers at the socket is doing; None where none does."""
    try:
        answer = ask(settings.socket, "GET", "/status", timeout_s=_ASK_TIMEOUT_S)
    except (NoAnswer, ConfigurationError):
        return None
    feed = answer.content.get("feed")
    feed = feed if isinstance(feed, dict) else {}
    connected = "connected" if feed.get("connected") else "not connected"
    error = f", last error: {feed['last_error']}" if feed.get("last_error") else ""
    return f"{answer.content.get('state', 'running')}, {feed.get('name', '-')} {connected}{error}"


async def check_settings(settings: Settings) -> CheckResult:
    """Say where the settings come from; that they are valid is known by now."""
    name = "settings"
    kind = "simulated prices" if settings.simulated else f"Alpaca's feed {settings.feed}"
    if not settings.sources:
        return passed(name, f"all are defaults: {kind}, set ALPACA_API_KEY for real ones")
    found = ", ".join(f"{key} ({source})" for key, source in settings.sources.items())
    return passed(name, f"{kind}; {found}")


async def check_socket(settings: Settings, running: str | None) -> CheckResult:
    """Look whether the API's socket can be made where it is to be."""
    name = "socket"
    if running is not None:
        return passed(name, f"a service runs at {settings.socket}: {running}")
    try:
        can_serve_at(settings.socket)
    except ConfigurationError as exc:
        return failed(name, str(exc), configuration=True)
    return passed(name, f"{settings.socket} is free")


async def check_redis(settings: Settings) -> CheckResult:
    """Try the rights that ``run`` needs on the server; or find the embedded one's program."""
    if settings.redis_url is None:
        return await _check_embedded_server()

    from mdservice.sinks.redis_link import RedisAddress
    from mdservice.sinks.redis_rights import try_rights

    name = "redis"
    advice = "check that the server runs, MDSERVICE_REDIS_URL and the password in it"
    names = RedisNames(settings.key_prefix)
    try:
        address = RedisAddress(settings.redis_url, timeout_s=_ASK_TIMEOUT_S)
    except ConfigurationError as exc:
        return failed(name, str(exc), configuration=True)
    try:
        rights = await try_rights(
            address,
            names,
            event_log=settings.event_log,
            renew_prices=settings.renew_prices,
            timeout_s=_ASK_TIMEOUT_S,
        )
    except StoreError as exc:
        return failed(name, str(exc), advice)
    return _describe_rights(
        rights, address, f"ACL SETUSER {address.user} {names.rights(settings.event_log)}"
    )


async def _check_embedded_server() -> CheckResult:
    from mdservice.sinks.embedded import find_server

    try:
        binary = await anyio.to_thread.run_sync(find_server)
    except EmbeddedServerError as exc:
        return failed("redis", str(exc))
    return passed("redis", f"an embedded server will be started ({binary.name})")


def _describe_rights(rights: RedisRights, address: RedisAddress, allow: str) -> CheckResult:
    from mdservice.sinks.redis_advice import describe_refusal

    name = "redis"
    if rights.missing:
        return failed(
            name, f"{address.shown} does not allow this user {', '.join(rights.missing)}", allow
        )
    if rights.refused is not None:
        return failed(name, describe_refusal(address.shown, rights.refused))
    if rights.reduced:
        return warned(
            name,
            f"{address.shown} takes writes, but does not allow this user "
            f"{', '.join(rights.reduced)}",
            allow,
        )
    return passed(name, f"{address.shown} answers and takes writes")
