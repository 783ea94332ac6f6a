"""Makes a tracker from settings, with positions from a source or from a function of the program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from functools import partial
from inspect import isawaitable
from itertools import chain
from operator import index, is_
from typing import Any, Final, cast

import anyio
import msgspec

from mdservice.client.discovery import Discovery, GivenServer, ServiceServer
from mdservice.client.open import open_prices, open_stream
from mdservice.client.reader import Prices, Records
from mdservice.clock import Clock, SystemClock
from mdservice.errors import ConfigurationError, PositionsUnavailable
from mdservice.gateway.account_updates import AccountUpdates
from mdservice.gateway.alerting import make_alerting
from mdservice.gateway.missing_prices import MissingPrices, last_closes, price_sources
from mdservice.gateway.on_trip import OnTrip, TradingAccount
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.gateway.risk import Risk, make_limits
from mdservice.gateway.tracker import Came, Fills, PnlTracker, ReadFrom
from mdservice.gateway.webhook import Webhook
from mdservice.model.kinds import QUOTES, TRADES
from mdservice.model.position import Position
from mdservice.model.symbol import spellings
from mdservice.observability.logging import get_logger, hide_secrets
from mdservice.pnl.engine import PnlEngine
from mdservice.positions import sources
from mdservice.positions.activities import AlpacaAccount
from mdservice.positions.cache import PAUSE_S, PositionCache
from mdservice.positions.parse import parse_positions
from mdservice.positions.sources import PositionSource, ServicePositions, open_source
from mdservice.positions.trading_stream import TradeUpdatesFollower, open_trading_stream
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings
from mdservice.settings.feeds import feed_delay_s

__all__ = ["FunctionPositions", "PositionsFunction", "PositionsGiven", "make_tracker"]

_log = get_logger(__name__)

PositionsFunction = Callable[[], Iterable[Any] | Awaitable[Iterable[Any]]]
"""Returns rows: positions, mappings, or objects with the attributes of a position."""

_FIELDS: Final = (
    "symbol",
    "qty",
    "avg_entry_price",
    "side",
    "multiplier",
    "asset_class",
    "current_price",
    "lastday_price",
    "currency",
    "swap_rate",
    "usd",
    "problem",
)
_PRICES: Final = ("avg_entry_price", "current_price", "lastday_price")
_UNREADABLE: Final = b'{"symbol":"?"}'
_ABSENT: Final = object()
_DICT: Final = frozenset({dict})
_NEVER_CHANGE: Final = frozenset({str, int, float, bool, Decimal, type(None), type(_ABSENT)})

PositionsGiven = str | PositionSource | PositionsFunction
_AT_ONCE_S: Final = 0.0
_SERVICE_PAUSE_S: Final = 0.05
"""Between two requests that events ask for: the service is on this machine, and has no limit."""


def make_tracker(
    positions: PositionsGiven,
    settings: Settings,
    *,
    redis_url: str | None = None,
    read_from: ReadFrom = "keys",
    symbols: Sequence[str] = (),
    alerts: Sequence[str] = (),
    limits: Sequence[str] = (),
    judges: bool = True,
    clock: Clock | None = None,
) -> PnlTracker:
    """The tracker for the routes. It does not connect yet.

    Args:
        positions: As for :func:`mdservice.gateway.pnl_router`.
        settings: Limits, intervals, keys.
        redis_url: The Redis with the prices; by default that of the settings, or else that of the
            service, with its key prefix if the settings have none.
        read_from: The source of an answer's prices.
        symbols: The only symbols to use, pairs with their slash or without; empty for all.
        alerts: Rules in addition to those of the settings.
        limits: Limits in addition to those of the settings.
        judges: Whether to judge the limits, to call the webhook, and to act on trips; False for a
            program that only shows positions.
        clock: The time, for tests.

    Raises:
        ConfigurationError: The URL, a rule or the text of the source is invalid, or ``on_trip`` has
            no account to act on.
    """
    hide_secrets(settings.secret_values())
    clock = clock or SystemClock()
    redis_url = redis_url or settings.redis_url
    prefix = settings.chosen_key_prefix
    server = (
        GivenServer(redis_url, prefix or "")
        if redis_url
        else ServiceServer(settings.socket, prefix)
    )
    calls = RedisCalls(server)
    source = _source(positions, settings)
    own = isinstance(source, FunctionPositions)
    priced = tuple(dict.fromkeys(chain.from_iterable(map(spellings, symbols))))
    engine = PnlEngine(
        stale_after_s=settings.stale_after,
        price_ttl_s=settings.price_ttl,
        feed_delay_s=feed_delay_s(settings.feed),
        max_spread=settings.max_spread,
        mark=settings.mark,
    )
    reads: Callable[[], AbstractAsyncContextManager[Prices | Records]]
    reads = partial(open_prices, redis_url, priced, prefix=prefix, socket=settings.socket)
    if settings.mark == "last":
        channels = QUOTES.channel, TRADES.channel
        reads = partial(
            open_stream, redis_url, priced, channels, prefix=prefix, socket=settings.socket
        )
    webhook = None
    if judges and settings.alert_webhook is not None:
        webhook = Webhook(settings.alert_webhook, settings.api_token, HttpClient())
    all_alerts = (*settings.alerts, *alerts)
    alerting = make_alerting(all_alerts, calls, clock, webhook)
    judged = make_limits((*settings.limits, *limits), all_alerts) if judges else make_limits((), ())
    http, on_trip, market_clock = HttpClient(), None, None
    if settings.api_key is not None and settings.secret_key is not None:
        keys = {"APCA-API-KEY-ID": settings.api_key, "APCA-API-SECRET-KEY": settings.secret_key}
        market_clock = MarketClock(settings.resolved_trading_url(), keys, http, "is not known")
    if judges and settings.on_trip:
        account = TradingAccount(settings, http)
        on_trip = OnTrip(settings.on_trip, account, calls, clock, webhook)
    interval_s = _AT_ONCE_S if own else settings.positions_interval
    pause_s = _SERVICE_PAUSE_S if isinstance(source, ServicePositions) else PAUSE_S
    cache = PositionCache(source, interval_s, clock, symbols, pause_s)
    has_own = isinstance(positions, str) and positions not in {"alpaca", "none"}
    return PnlTracker(
        cache,
        calls,
        reads,
        engine,
        alerting,
        read_from,
        clock,
        Risk(judged, engine, calls, clock, webhook, settings.api_token, on_trip),
        webhook,
        http,
        _fills(positions, source, cache, server, settings, clock),
        market_clock,
        MissingPrices(engine, price_sources(settings, server, clock, http)),
        None if has_own else _account(settings),
        last_closes(settings, clock, http),
    )


def _fills(
    positions: PositionsGiven,
    source: PositionSource,
    cache: PositionCache,
    discovery: Discovery,
    settings: Settings,
    clock: Clock,
) -> Callable[[Came], Fills] | None:
    """What follows the account's events: Alpaca's own, or those of the service."""
    stream = open_trading_stream(positions, settings) if isinstance(positions, str) else None
    if stream is not None:
        return lambda came: TradeUpdatesFollower(stream, cache, came, clock, "gateway")
    if isinstance(source, ServicePositions):
        return lambda came: AccountUpdates(discovery, cache, came)
    return None


def _account(settings: Settings) -> AlpacaAccount | None:
    """The account whose fills and fees are the day's; None without keys.

    None too where prices are simulated and the account is not.
    """
    if settings.simulator_embedded and "trading_url" not in settings.sources:
        return None
    key, secret = settings.api_key, settings.secret_key
    if key is None or secret is None:
        return None
    return AlpacaAccount(settings.resolved_trading_url(), key, secret)


def _source(positions: PositionsGiven, settings: Settings) -> PositionSource:
    if isinstance(positions, str):
        found = open_source(
            positions,
            trading_url=settings.resolved_trading_url(),
            api_key=settings.api_key,
            secret_key=settings.secret_key,
        )
        return found or ServicePositions(settings.socket)
    if not hasattr(positions, "fetch") and callable(positions):
        return FunctionPositions(positions)
    if hasattr(positions, "fetch"):
        return cast("PositionSource", positions)
    raise ConfigurationError(
        "positions: give a function that returns them, or a text as in MDSERVICE_POSITIONS"
    )


class FunctionPositions:
    """A :class:`~mdservice.positions.sources.PositionSource` that calls a function."""

    address = "the program's own positions"

    def __init__(self, function: PositionsFunction) -> None:
        self._function = function
        self._known: dict[int, tuple[Sequence[object], bytes]] = {}
        """Each row's values and JSON, by its index. The function is called far more often than its
        result changes."""
        self._unreadable: dict[int, tuple[str, str]] = {}
        """The types of unreadable rows and of their errors, by index."""
        self._parts: list[object] = []
        """What the rows consisted of, where none of it can change in place; else empty."""
        self._content = b""
        self._positions: tuple[Position, ...] = ()
        """The positions of the last content."""

    async def fetch(self) -> Sequence[Position]:
        """Call the function.

        Raises:
            PositionsUnavailable: It raised an error, or has not returned in time.
            PositionsRefused: It returned far too many rows.
        """
        try:
            with anyio.fail_after(sources.FETCH_LIMIT_S):
                found = self._function()
                rows = list(await found if isawaitable(found) else found)
        except TimeoutError as exc:
            limit_s = sources.FETCH_LIMIT_S
            raise PositionsUnavailable(
                f"the program's function for positions has not returned within {limit_s:g} s"
            ) from exc
        except Exception as exc:
            # Its message may hold a secret, and this text goes to every client of the P&L.
            _log.warning("positions_function_failed", exc_info=exc)
            raise PositionsUnavailable(
                f"the program's function for positions failed ({type(exc).__name__}, see the log)"
            ) from exc
        parts = _parts(rows)
        if parts and len(parts) == len(self._parts) and all(map(is_, parts, self._parts)):
            return self._positions
        if len(rows) < len(self._known):
            self._known.clear()
        for place in [place for place in self._unreadable if place >= len(rows)]:
            del self._unreadable[place]
        content = b"[%b]" % b",".join([self._encoded(*each) for each in enumerate(rows)])
        if content != self._content:
            self._positions = tuple(parse_positions(content, "what the function returns"))
            self._content = content
        self._parts = parts if _NEVER_CHANGE.issuperset(map(type, parts)) else []
        return self._positions

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""

    def _encoded(self, place: int, row: object) -> bytes:
        """One row as JSON. An unusable row does not affect the others."""
        try:
            values = _values_of(row)
            known = self._known.get(place)
            if known is not None and all(map(is_, values, known[0])):
                return known[1]
            found = {
                name: _in_dollars(value) if name == "usd" else _plain(value)
                for name, value in zip(_FIELDS, values, strict=True)
                if value is not _ABSENT
            }
            encoded = msgspec.json.encode(found)
        except Exception as exc:  # noqa: BLE001 - properties of rows run the program's own code
            error = type(row).__name__, type(exc).__name__
            if self._unreadable.get(place) != error:  # logged once, not at each answer
                self._unreadable[place] = error
                _log.warning("position_is_unreadable", row=error[0], reason=error[1])
            return _UNREADABLE
        if self._unreadable:
            self._unreadable.pop(place, None)
        if _NEVER_CHANGE.issuperset(map(type, values)):
            self._known[place] = values, encoded
        return encoded


def _parts(rows: Sequence[object]) -> list[object]:
    """Sizes, keys and values of rows that are plain dicts; empty where there are others.

    Where all are the same objects as before, so are the rows. Comparing them in one go takes a
    third of the time of a look at each row.
    """
    if not _DICT.issuperset(map(type, rows)):
        return []
    dicts = cast("Sequence[dict[object, object]]", rows)
    values = chain.from_iterable(map(dict.values, dicts))
    return [*map(len, dicts), *chain.from_iterable(dicts), *values]


def _values_of(row: object) -> Sequence[object]:
    """The values of a position, in the order of its fields."""
    return _values(row, _FIELDS)


def _values(row: object, fields: Sequence[str]) -> Sequence[object]:
    if type(row) is dict:
        return [row.get(name, _ABSENT) for name in fields]
    if isinstance(row, Mapping):  # a subclass's get() may return something else
        return [row[name] if name in row else _ABSENT for name in fields]  # noqa: SIM401
    return [getattr(row, name, _ABSENT) for name in fields]


def _in_dollars(block: object) -> object:
    """The prices of ``usd``, a mapping or an object; None if it has none."""
    prices = zip(_PRICES, _values(block, _PRICES), strict=True)
    return {name: _plain(price) for name, price in prices if price is not _ABSENT} or None


def _plain(value: object) -> object:
    """Numbers of any library as decimal texts."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "__index__"):
        return str(index(value))
    if hasattr(value, "__float__"):
        return repr(float(value))
    return str(value)
