"""Subscriptions, prices and the event stream, under ``/api/v1/market-data``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, MutableMapping
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, HTTPException, Query, Request, Response

from mdservice.http_api.handle import ServiceHandle, SubscriptionOutcome
from mdservice.http_api.monitoring import Service, json_answer
from mdservice.http_api.requests import Receive, Send, asked_symbols, listed_symbols
from mdservice.http_api.schemas import (
    PriceAnswer,
    PricesAnswer,
    Problem,
    SubscriptionAnswer,
    SubscriptionsAnswer,
)
from mdservice.model.events import FeedStatus, encode_status
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.model.symbol import parse_symbol

__all__ = ["EventStream", "router"]


router = APIRouter(prefix="/api/v1/market-data", tags=["market data"])

KEEP_ALIVE_S = 15.0
_KEEP_ALIVE = b": keep-alive\n\n"
_PAUSE_S = 0.01
"""The pause between two writes to one client. A thousand updates then share a few writes, and a
client takes only a small part of the event loop, which also reads the feed."""
_MAX_FRAMES = 512
"""Events for the next write. Further events wait in the service, which conflates them."""

Asked = Annotated[
    list[str] | None,
    Query(description="The symbol; may be repeated.", examples=["AAPL"]),
]
Listed = Annotated[
    list[str] | None,
    Query(description="Comma-separated symbols; without them, all.", examples=["AAPL,MSFT"]),
]

_Responses = dict[int | str, dict[str, Any]]
_BAD_SYMBOL: _Responses = {422: {"model": Problem, "description": "A bad symbol, or no symbol."}}
_CHANGE: _Responses = {
    **_BAD_SYMBOL,
    408: {"model": Problem, "description": "The body did not arrive in time."},
    409: {"model": Problem, "description": "The feed refused; nothing has changed."},
    413: {"model": Problem, "description": "The body is too long."},
}
_UNKNOWN: _Responses = {404: {"model": Problem, "description": "No price of this symbol yet."}}
_STREAM: _Responses = {
    200: {
        "description": "Server-sent events. The latest price of each symbol comes first as "
        "`price.updated`, then every update. `feed.status` is each change of the feed's state. "
        "A client that reads slowly gets the latest per symbol, seen as a step in `seq`.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'event: price.updated\ndata: {"symbol": "AAPL", "price": 187.135, '
                '"bid": 187.12, "ask": 187.15, "bid_size": 2, "ask_size": 3, '
                '"timestamp": "2026-11-20T15:51:44.208912345Z", "seq": 1042}\n\n',
            }
        },
    }
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "description": "The symbols, if they are not in the query.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "symbols": {"type": "array", "items": {"type": "string"}},
                        "symbol": {"type": "string"},
                    },
                },
                "example": {"symbols": ["AAPL", "MSFT"]},
            }
        },
    }
}


@router.post(
    "/subscribe",
    response_model=SubscriptionAnswer,
    response_model_exclude_none=True,
    responses=_CHANGE,
    openapi_extra=_BODY,
)
async def subscribe(request: Request, service: Service, symbol: Asked = None) -> Response:
    """Subscribe to symbols: to all of them, or to none."""
    symbols = asked_symbols(symbol, await request.body())
    return _changed(await service.subscribe(*symbols, source="api"))


@router.post(
    "/unsubscribe",
    response_model=SubscriptionAnswer,
    response_model_exclude_none=True,
    responses=_CHANGE,
    openapi_extra=_BODY,
)
async def unsubscribe(request: Request, service: Service, symbol: Asked = None) -> Response:
    """Unsubscribe from symbols. Those of open positions stay subscribed."""
    symbols = asked_symbols(symbol, await request.body())
    return _changed(await service.unsubscribe(*symbols, source="api"))


def _changed(outcome: SubscriptionOutcome) -> Response:
    symbols = list(outcome.symbols)
    one = {"symbol": symbols[0]} if len(symbols) == 1 else {}
    return json_answer({"status": outcome.status, **one, "symbols": symbols})


@router.get("/subscriptions", response_model=SubscriptionsAnswer)
async def subscriptions(service: Service) -> Response:
    """The wanted symbols, the sources that want each, and what the feed acknowledged."""
    sources = dict(sorted(service.subscriptions().items()))
    return json_answer(
        {
            "symbols": list(sources),
            "sources": sources,
            "channels": service.channels(),
            "left_out": service.left_out(),
        }
    )


@router.get("/prices", response_model=PricesAnswer, responses=_BAD_SYMBOL)
async def prices(service: Service, symbols: Listed = None) -> Response:
    """The latest price of each symbol that has one."""
    quotes = service.prices(listed_symbols(symbols) or None)
    body = b'{"prices":[%b]}' % b",".join(encode_quote(quote) for quote in quotes)
    return Response(body, media_type="application/json")


@router.get(
    "/prices/{symbol:path}", response_model=PriceAnswer, responses={**_BAD_SYMBOL, **_UNKNOWN}
)
async def price(service: Service, symbol: str) -> Response:
    """The latest price of one symbol. `BTC/USD` may have its slash."""
    name = parse_symbol(symbol)
    quote = service.latest(name)
    if quote is None:
        wanted = name in service.subscriptions()
        hint = "wait for its first quote" if wanted else "subscribe to it first"
        raise HTTPException(404, f"there is no price of {name} yet: {hint}")
    return Response(encode_quote(quote), media_type="application/json")


@router.get("/stream", response_class=Response, responses={**_BAD_SYMBOL, **_STREAM})
async def stream(service: Service, symbols: Listed = None) -> Response:
    """Prices and changes of the feed's state, as server-sent events."""
    return EventStream(service, listed_symbols(symbols))


class EventStream(Response):
    """Server-sent events: an endless answer of ``price.updated`` and ``feed.status`` events.

    The latest price of each symbol comes first, then every later update. Without updates, it sends
    a comment every 15 s. The stream ends when the client leaves, when the service closes its
    events, or when the server sets ``scope["state"]["closing"]``.

    Args:
        service: The source of the events.
        symbols: The symbols to send; empty for all.
    """

    media_type = "text/event-stream"

    def __init__(self, service: ServiceHandle, symbols: tuple[str, ...]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service = service
        self._symbols = symbols
        self._frames: list[bytes] = []
        self._filled = anyio.Event()
        self._taken = anyio.Event()
        self._ended = False
        self._gone = False
        self._reading = anyio.CancelScope()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Send events until one side ends. When cancelled, it leaves no task behind."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        closing: anyio.Event | None = scope.get("state", {}).get("closing")
        async with anyio.create_task_group() as tasks:

            async def until_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                self._gone = True
                tasks.cancel_scope.cancel()

            async def until_closing(event: anyio.Event) -> None:
                await event.wait()
                self._reading.cancel()

            tasks.start_soon(until_gone)
            tasks.start_soon(self._read)
            if closing is not None:
                tasks.start_soon(until_closing, closing)
            await self._write(send)
            tasks.cancel_scope.cancel()
        if not self._gone:
            # Outside of the task group: Hypercorn now reports that the client is gone, and a
            # cancellation would keep it from closing the connection.
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self) -> None:
        """Encode the service's events, at most some hundred ahead of the writes."""
        with self._reading:
            async with self._service.events(*self._symbols) as events:
                try:
                    async for event in events:
                        await self._put(event)
                finally:
                    # Otherwise the garbage collector would end the generator some time later.
                    if isinstance(events, AsyncGenerator):
                        await events.aclose()
        self._ended = True
        self._filled.set()

    async def _put(self, event: Quote | FeedStatus) -> None:
        while len(self._frames) >= _MAX_FRAMES:
            self._taken = anyio.Event()
            await self._taken.wait()
        self._frames.append(_frame(event))
        self._filled.set()

    async def _write(self, send: Send) -> None:
        while not self._ended or self._frames:
            with anyio.move_on_after(KEEP_ALIVE_S):
                await self._filled.wait()
            if not self._ended:
                self._filled = anyio.Event()
            frames, self._frames = self._frames, []
            self._taken.set()
            if frames or not self._ended:
                body = b"".join(frames) or _KEEP_ALIVE
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await anyio.sleep(_PAUSE_S)


def _frame(event: Quote | FeedStatus) -> bytes:
    if isinstance(event, FeedStatus):
        return b"event: feed.status\ndata: %b\n\n" % encode_status(event)
    return b"event: price.updated\ndata: %b\n\n" % encode_quote(event)
