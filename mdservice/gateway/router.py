"""The FastAPI router with real-time P&L that an execution gateway mounts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import anyio
import attrs
import msgspec
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field

from mdservice.errors import AccountError, AccountUnavailable, PositionsError
from mdservice.gateway.make import PositionsGiven, make_tracker
from mdservice.gateway.risk_observer import RiskObserver
from mdservice.gateway.risk_routes import judging, risk_router
from mdservice.gateway.tracker import PnlTracker, ReadFrom
from mdservice.http_api.schemas import Answer, HeldPosition, Problem
from mdservice.pnl.encode import encode_positions, encode_report, row_texts
from mdservice.pnl.rows import PnlReport
from mdservice.settings import Settings

__all__ = [
    "DAY_PATH",
    "NOT_KNOWN",
    "PNL_PATH",
    "Answers",
    "DayAnswer",
    "PnlAnswer",
    "pnl_router",
    "tracker_router",
]

_PAUSE_S: Final = 0.02
_PAUSE_PER_COST: Final = 20.0
_LEAST_PAUSE_S: Final = 0.003
_LEAST_PAUSE_PER_COST: Final = 4.0
"""Likewise before a change of the positions, which does not wait for the whole pause."""

DAY_PATH: Final = "/api/v1/account/pnl/day"
PNL_PATH: Final = "/api/v1/positions/pnl/realtime"
_JSON: Final = "application/json"
NOT_KNOWN: Final[dict[int | str, dict[str, Any]]] = {
    503: {"model": Problem, "description": "The positions are not known yet."}
}
"""The answer of these calls before the positions are known for the first time."""
_NO_ACTIVITIES: Final[dict[int | str, dict[str, Any]]] = {
    503: {"model": Problem, "description": "The activities of the account cannot be had."}
}
_NOT_RUNNING: Final[dict[int | str, dict[str, Any]]] = {
    503: {"model": Problem, "description": "The application does not run its lifespan."}
}


def pnl_router(
    positions: PositionsGiven,
    *,
    settings: Settings | None = None,
    redis_url: str | None = None,
    read_from: ReadFrom = "keys",
    alerts: Sequence[str] = (),
    limits: Sequence[str] = (),
    max_spread: float | None = None,
    mark: Literal["mid", "last", "exit"] | None = None,
) -> APIRouter:
    """Real-time P&L for an existing FastAPI application, on asyncio or trio.

    ::

        app = FastAPI()
        app.include_router(pnl_router(my_positions, redis_url="redis://localhost:6379"))

    It adds ``GET /api/v1/positions/pnl/realtime``, ``GET /api/v1/account/pnl/day``, a stream of
    server-sent events at ``…/realtime/stream``, and the limits under ``/api/v1/risk``. All but the
    first two calls need the application's lifespan, which every server runs, and so do the alerts.
    uvicorn waits for open streams when it stops, so give it a ``timeout_graceful_shutdown`` of a
    few seconds.

    Args:
        positions: A function, async or not, that returns the current positions: each a
            :class:`~mdservice.model.position.Position`, or a mapping or an object with
            ``symbol``, ``qty`` and ``avg_entry_price``. Or a text as in
            ``MDSERVICE_POSITIONS``, or a position source.
        settings: Limits, intervals, keys; by default the default settings.
        redis_url: The Redis with the prices; by default that of the settings, or else that of the
            service at the settings' socket, with its key prefix if the settings have none.
        read_from: ``keys``: each answer reads all prices from Redis in one round trip.
            ``live``: each answer uses the prices of the live subscriber. A key then counts as
            expired ``price_ttl`` after the last event, not when Redis removes it.
        alerts: Rules such as ``AAPL pnl < -500``, published on the channel ``pnl.alert``; in
            addition to those of the settings.
        limits: Rules such as ``AAPL qty > 100`` that trip the circuit breaker; in addition to those
            of the settings. See :func:`mdservice.gateway.trading_allowed`.
        max_spread: Per cent of the mid. A quote with a wider spread is not a price; 0 allows any.
            By default that of the settings.
        mark: The price: ``mid``, ``last`` (the last trade; the service must follow ``trades``) or
            ``exit`` (bid for long, ask for short). By default that of the settings.

    Raises:
        ConfigurationError: The URL, the spread, a rule or the text of the source is invalid.
    """
    settings = settings or Settings()
    if max_spread is not None:
        settings = attrs.evolve(settings, max_spread=max_spread)
    if mark is not None:
        settings = attrs.evolve(settings, mark=mark)
    tracker = make_tracker(
        positions,
        settings,
        redis_url=redis_url,
        read_from=read_from,
        alerts=alerts,
        limits=limits,
    )
    return tracker_router(tracker)


def tracker_router(tracker: PnlTracker) -> APIRouter:
    """The routes of a tracker, which runs as long as the application."""
    answers = Answers(tracker)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with tracker.running():
            with judging(app, tracker):
                yield

    router = APIRouter(lifespan=lifespan, tags=["positions"])

    @router.get(PNL_PATH, response_model=PnlAnswer, responses=NOT_KNOWN)
    async def realtime_pnl() -> Response:
        """Every position at its latest price: exact unrealised P&L, and the totals."""
        try:
            return Response(await answers.whole(), media_type=_JSON)
        except PositionsError as exc:
            return JSONResponse({"detail": str(exc)}, 503)

    async def only_while_running() -> None:
        if not tracker.is_running:
            raise HTTPException(503, "no stream: the application does not run its lifespan")

    @router.get(
        f"{PNL_PATH}/stream",
        response_class=EventSourceResponse,
        responses=_NOT_RUNNING,
        dependencies=[Depends(only_while_running)],
    )
    async def pnl_stream(request: Request) -> AsyncIterator[ServerSentEvent]:
        """The same as events: `pnl` with all rows, then `pnl.changed` with the changed rows.

        Both have the totals. A changed symbol comes with all of its lots.
        """
        closing: anyio.Event | None = request.scope.get("state", {}).get("closing")

        def ended() -> bool:
            return not tracker.is_running or (closing is not None and closing.is_set())

        async for name, data in answers.stream(ended):
            yield ServerSentEvent(event=name, raw_data=data)

    _add_day(router, answers)
    router.include_router(risk_router(tracker))
    return router


def _add_day(router: APIRouter, answers: Answers) -> None:
    @router.get(DAY_PATH, response_model=DayAnswer, responses=_NO_ACTIVITIES, tags=["account"])
    async def day_pnl() -> Response:
        """The P&L of today in New York: realised, unrealised, fees, and what was traded."""
        try:
            return Response(await answers.day(), media_type=_JSON)
        except (AccountError, PositionsError) as exc:
            return JSONResponse({"detail": str(exc)}, 503)


class Answers:
    """Encodes the reports of one tracker.

    Args:
        tracker: The tracker.
        observer: Sees the limits that another program judges; None if the tracker's are shown.
    """

    def __init__(self, tracker: PnlTracker, observer: RiskObserver | None = None) -> None:
        self._tracker = tracker
        self._observer = observer

    async def positions(self) -> bytes:
        """``{"positions":[{"symbol":"AAPL","qty":10,"avg_entry_price":150.00}]}``.

        Raises:
            PositionsUnavailable: They are not known yet.
        """
        positions = await self._tracker.current_positions()
        known = self._tracker.positions
        warning = known.warning()
        warnings = [] if warning is None else [warning]
        return encode_positions(positions, warnings, known.differences())

    async def whole(self) -> bytes:
        """Every position at its price, with ``warnings`` where something may be out of date.

        Raises:
            PositionsUnavailable: The positions are not known yet.
        """
        return self._encode(await self._tracker.report_of(row_texts))

    async def day(self) -> bytes:
        """The account's day; see :func:`mdservice.pnl.encode.encode_day`.

        Raises:
            AccountUnavailable: The activities cannot be had.
            PositionsUnavailable: The positions are not known yet.
        """
        day = self._tracker.day
        if day is None:
            raise AccountUnavailable(
                "the activities of the account are not known: the gateway has no account, set "
                "ALPACA_API_KEY and ALPACA_SECRET_KEY"
            )
        await self._tracker.refresh()
        await day.current(polled=self._tracker.is_running)
        warnings = self._tracker.warnings()
        if (unusable := self._tracker.unusable()) is not None:
            warnings.append(unusable)
        return day.encode(warnings)

    async def risk(self) -> bytes | None:
        """The breaker and the limits at the last prices; None without limits.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: Redis cannot be asked.
        """
        if self._observer is not None:
            return await self._observer.encode()
        risk = self._tracker.risk
        if not risk.has_limits:
            return None
        return await risk.encode(await risk.breaker(), risk.blind())

    async def stream(self, ended: Callable[[], bool]) -> AsyncIterator[tuple[str, str]]:
        """The names and the data of events: ``pnl`` with everything, then ``pnl.changed``.

        A pause follows each event, and changes during the pause go out in one event. The pause is
        longer after a large event, so that a reader takes only a small part of the event loop. A
        change of the positions ends most of it.

        Args:
            ended: Returns whether the stream should end.
        """
        async for report in self._tracker.updates(row_texts, ended):
            moved, began_s = self._tracker.moved, time.perf_counter()  # noqa: TID251 - a cost
            data = self._encode(report, live=True).decode()
            cost_s = time.perf_counter() - began_s  # noqa: TID251 - a cost
            yield "pnl" if report.whole else "pnl.changed", data
            with anyio.move_on_after(max(_PAUSE_S, cost_s * _PAUSE_PER_COST)):
                await anyio.sleep(max(_LEAST_PAUSE_S, cost_s * _LEAST_PAUSE_PER_COST))
                await moved.wait()

    def _encode(self, report: PnlReport[str], *, live: bool = False) -> bytes:
        body = encode_report(report)
        warnings = self._tracker.warnings(live=live)
        if (unusable := self._tracker.unusable()) is not None:
            warnings.append(unusable)
        if not warnings:
            return body
        return b'%b,"warnings":%b}' % (body[:-1], msgspec.json.encode(warnings))


class MarketHours(Answer):
    """The stock market's hours, as Alpaca's clock gives them."""

    is_open: bool = Field(description="Whether the regular session is on.")
    next_open: str | None = Field(
        description="RFC 3339; null if the clock does not say.",
        examples=["2026-11-23T09:30:00-05:00"],
    )
    next_close: str | None = Field(description="Likewise.", examples=["2026-11-20T16:00:00-05:00"])


class PnlAnswer(Answer):
    """Every position at its latest price. Numbers are exact decimals."""

    positions: list[_Row] = Field(description="In the source's order; none is omitted.")
    total_unrealized_pnl: float = Field(
        description="The sum over the priced positions, whatever their status.",
        examples=[371.35],
    )
    total_market_value: float = Field(description="Likewise.", examples=[1871.35])
    total_day_pnl: float | None = Field(
        description="The sum over all positions; null if that of one is not known. What was closed "
        "today, and fees, are in `/api/v1/account/pnl/day`.",
        examples=[17.35],
    )
    realized_day_pnl: float | None = Field(
        description="What today's fills realised; null where they are not known.", examples=[12.5]
    )
    market: MarketHours | None = Field(
        description="The stock market's hours, which are those of options too; null if they are "
        "not known.",
    )
    priced: int = Field(description="The number of rows with a price, whatever their status.")
    unpriced: int = Field(description="Rows without one.")
    warnings: list[str] | None = Field(
        default=None,
        description="Why the answer may be out of date, and which positions are unusable; absent "
        "without warnings.",
    )


class DayAnswer(Answer):
    """The P&L of one day. Numbers are exact decimals, in dollars."""

    date: str = Field(description="New York's.", examples=["2026-11-20"])
    realized_pnl: float | None = Field(
        description="Of what was reduced today, against the average entry price by Alpaca's rule; "
        "null if that of one symbol is not known.",
        examples=[12.5],
    )
    unrealized_change: float | None = Field(
        description="How much the unrealised P&L changed since the last close; null if that is not "
        "known.",
        examples=[4.85],
    )
    fees: float | None = Field(
        description="At least 0; null if one cannot be read.", examples=[0.02]
    )
    total: float | None = Field(
        description="What was realised and the change, less the fees; null if that is not known.",
        examples=[17.33],
    )
    symbols: list[_TradedSymbol] = Field(
        description="What was traded today, in the order of the first fills."
    )
    warnings: list[str] | None = Field(
        default=None,
        description="What is not known, what else changed the equity, and whether it differs; "
        "absent without warnings.",
    )


class _TradedSymbol(Answer):
    """What was traded of one symbol."""

    symbol: str = Field(description="As the positions write it.", examples=["AAPL"])
    realized_pnl: float | None = Field(description="Null if it is not known.", examples=[12.5])
    fills: int = Field(description="How many trades there were.", examples=[3])
    qty: float = Field(description="What is held now; negative if short.", examples=[10])


class _Row(HeldPosition):
    """A position at its latest price."""

    current_price: float | None = Field(
        description="By MDSERVICE_MARK the mid of its latest usable quote, its last trade, or the "
        "side of the quote at which it can be closed; without one the price from the position's "
        "source; null if it is unpriced.",
        examples=[187.135],
    )
    unrealized_pnl: float | None = Field(
        description="Exact; null if it is unpriced.", examples=[371.35]
    )
    unrealized_pnl_pct: float | None = Field(
        description="Of |qty| times avg_entry_price, to 4 places, half-even.", examples=[24.7567]
    )
    market_value: float | None = Field(
        description="Negative for a short position; null if it is unpriced.", examples=[1871.35]
    )
    day_pnl: float | None = Field(
        description="The P&L of its symbol since the last close; of several lots of a symbol, each "
        "has its own part. Null if it is unpriced, or if the price at the last close is not known.",
        examples=[17.35],
    )
    last_updated: str | None = Field(
        description="The exchange's time of that quote or trade, UTC, RFC 3339 with nanoseconds; "
        "null for a price from the position's source.",
        examples=["2026-11-20T15:51:44.208912345Z"],
    )
    mark: Literal["mid", "last", "bid", "ask", "previous"] | None = Field(
        description="What `current_price` is: `previous` is the price from the position's source. "
        "Null if it is unpriced.",
        examples=["mid"],
    )
    status: Literal["live", "closed", "stale", "unpriced"] = Field(
        description="`live`: the price is not older than the age limit, at any hour. `closed`: it "
        "is older, its market is closed, and it is the last session's last price. `stale`: it is "
        "too old otherwise, its key has expired, a newer quote has no side or too wide a spread, "
        "or it comes from the position's source."
    )
    problem: str | None = Field(default=None, description="Why it is never priced.")
