"""Subscriptions, prices and the event stream, under ``/api/v1/market-data``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response

from mdservice.api.handle import SubscriptionOutcome
from mdservice.api.monitoring import Service, json_answer
from mdservice.api.requests import asked_symbols, listed_symbols
from mdservice.api.schemas import (
    PriceAnswer,
    PricesAnswer,
    Problem,
    SubscriptionAnswer,
    SubscriptionsAnswer,
)
from mdservice.api.stream import EventStream
from mdservice.model.encode import encode_quote
from mdservice.model.symbol import parse_symbol

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/market-data", tags=["market data"])

Asked = Annotated[
    list[str] | None,
    Query(description="The symbol; may be repeated.", examples=["AAPL"]),
]
Listed = Annotated[
    list[str] | None,
    Query(description="Comma-separated symbols; all where it is left out.", examples=["AAPL,MSFT"]),
]

_Responses = dict[int | str, dict[str, Any]]
_BAD_SYMBOL: _Responses = {422: {"model": Problem, "description": "A bad symbol, or none at all."}}
_CHANGE: _Responses = {
    **_BAD_SYMBOL,
    408: {"model": Problem, "description": "The body did not arrive in time."},
    409: {"model": Problem, "description": "The feed refused; nothing was changed."},
    413: {"model": Problem, "description": "The body is too long."},
}
_UNKNOWN: _Responses = {404: {"model": Problem, "description": "No price of this symbol yet."}}
_STREAM: _Responses = {
    200: {
        "description": "Server-sent events. First the latest price of each symbol as "
        "`price.updated`, then every update; `feed.status` with each change of the feed's state. "
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
        "description": "The symbols, where they are not in the query.",
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
    """Ask the feed for symbols, all or none of them."""
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
    """No longer follow symbols; those of open positions stay."""
    symbols = asked_symbols(symbol, await request.body())
    return _changed(await service.unsubscribe(*symbols, source="api"))


def _changed(outcome: SubscriptionOutcome) -> Response:
    symbols = list(outcome.symbols)
    one = {"symbol": symbols[0]} if len(symbols) == 1 else {}
    return json_answer({"status": outcome.status, **one, "symbols": symbols})


@router.get("/subscriptions", response_model=SubscriptionsAnswer)
async def subscriptions(service: Service) -> Response:
    """Every wanted symbol, who wants it, and what the feed really gives."""
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
    """The latest price of one symbol. `BTC/USD` may be written with its slash."""
    name = parse_symbol(symbol)
    quote = service.latest(name)
    if quote is None:
        wanted = name in service.subscriptions()
        hint = "wait for its first quote" if wanted else "subscribe to it first"
        raise HTTPException(404, f"there is no price of {name} yet: {hint}")
    return Response(encode_quote(quote), media_type="application/json")


@router.get("/stream", response_class=Response, responses={**_BAD_SYMBOL, **_STREAM})
async def stream(service: Service, symbols: Listed = None) -> Response:
    """Prices and changes of the feed's state as they come, as server-sent events."""
    return EventStream(service, listed_symbols(symbols))
