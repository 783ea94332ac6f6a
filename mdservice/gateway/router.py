"""The routes that an execution gateway mounts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import attrs
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from mdservice.api.schemas import Problem
from mdservice.errors import PositionsError
from mdservice.gateway.answers import Answers
from mdservice.gateway.book import PnlBook, ReadFrom
from mdservice.gateway.make import PositionsGiven, make_book
from mdservice.gateway.schemas import PnlAnswer
from mdservice.settings import Settings

__all__ = ["NOT_KNOWN", "PNL_PATH", "book_router", "pnl_router"]

PNL_PATH: Final = "/api/v1/positions/pnl/realtime"
_JSON: Final = "application/json"
NOT_KNOWN: Final[dict[int | str, dict[str, Any]]] = {
    503: {"model": Problem, "description": "The positions are not known yet."}
}
"""What the calls that tell positions answer before these were ever told."""
_NOT_RUNNING: Final[dict[int | str, dict[str, Any]]] = {
    503: {"model": Problem, "description": "The application's lifespan is not run."}
}


def pnl_router(
    positions: PositionsGiven,
    *,
    settings: Settings | None = None,
    redis_url: str | None = None,
    read_from: ReadFrom = "keys",
    alerts: Sequence[str] = (),
    max_spread: float | None = None,
) -> APIRouter:
    """Real-time P&L for an existing FastAPI application, on asyncio or trio.

    ::

        app = FastAPI()
        app.include_router(pnl_router(my_positions, redis_url="redis://localhost:6379"))

    It adds ``GET /api/v1/positions/pnl/realtime``, and the same as a stream of server-sent
    events at ``…/realtime/stream``. The stream and alerts work while the application's lifespan
    runs, as every server does; the first call works without it too. uvicorn waits for open
    streams before it ends: give it a ``timeout_graceful_shutdown`` of a few seconds.

    Args:
        positions: A function, async or not, that returns the positions as they are now: each a
            :class:`~mdservice.model.position.Position`, or a mapping or an object with
            ``symbol``, ``qty`` and ``avg_entry_price``. Or a text as in
            ``MDSERVICE_POSITIONS``, or a position source.
        settings: Limits, intervals, keys; the defaults where not given.
        redis_url: Where the prices are; else that of the settings, else that of the service at
            the settings' socket, whose key prefix is taken too where the settings choose none.
        read_from: ``keys``: each answer reads all prices from Redis in one round trip.
            ``live``: it takes those that the live subscriber has heard, for which a key counts
            as expired ``price_ttl`` after the last event, not when Redis removes it.
        alerts: Rules such as ``AAPL pnl < -500``, published on the channel ``pnl.alert``; in
            addition to those of the settings.
        max_spread: Per cent of the mid; a quote with a wider spread is no price, and 0 allows any.
            That of the settings where not given.

    Raises:
        ConfigurationError: The URL, the spread, a rule or the text of the source cannot be used.
    """
    settings = settings or Settings()
    if max_spread is not None:
        settings = attrs.evolve(settings, max_spread=max_spread)
    book = make_book(
        positions,
        settings,
        redis_url=redis_url,
        read_from=read_from,
        alerts=alerts,
    )
    return book_router(book)


def book_router(book: PnlBook) -> APIRouter:
    """The routes of a book, which runs for as long as the application does."""
    answers = Answers(book)

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        async with book.running():
            yield

    router = APIRouter(lifespan=lifespan, tags=["positions"])

    @router.get(PNL_PATH, response_model=PnlAnswer, responses=NOT_KNOWN)
    async def realtime_pnl() -> Response:
        """Every position at its latest price: unrealised P&L, exact, and the totals."""
        try:
            return Response(await answers.whole(), media_type=_JSON)
        except PositionsError as exc:
            return JSONResponse({"detail": str(exc)}, 503)

    async def only_while_running() -> None:
        if not book.is_running:
            raise HTTPException(503, "there is no stream: the application's lifespan is not run")

    @router.get(
        f"{PNL_PATH}/stream",
        response_class=EventSourceResponse,
        responses=_NOT_RUNNING,
        dependencies=[Depends(only_while_running)],
    )
    async def pnl_stream(request: Request) -> AsyncIterator[ServerSentEvent]:
        """The same as events: `pnl` with everything, then `pnl.changed` with what has changed.

        Both have the totals. A changed symbol comes with all of its lots.
        """
        closing: anyio.Event | None = request.scope.get("state", {}).get("closing")

        def ended() -> bool:
            return not book.is_running or (closing is not None and closing.is_set())

        async for name, data in answers.stream(ended):
            yield ServerSentEvent(event=name, raw_data=data)

    return router
