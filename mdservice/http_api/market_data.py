"""Subscriptions, latest values and the event stream, under ``/api/v1/market-data``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, MutableMapping, Sequence
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from pydantic import WithJsonSchema

from mdservice.errors import InvalidChannel
from mdservice.http_api.handle import ServiceHandle, SubscriptionOutcome
from mdservice.http_api.monitoring import Service, json_answer
from mdservice.http_api.requests import Receive, Send, asked, listed_channels, listed_symbols
from mdservice.http_api.schemas import (
    LatestAnswer,
    NewsAnswer,
    PriceAnswer,
    PricesAnswer,
    Problem,
    RecordsAnswer,
    SubscriptionAnswer,
    SubscriptionsAnswer,
)
from mdservice.model.events import FeedStatus, RecordBatch, encode_status
from mdservice.model.feeds import CHANNELS, kinds_of
from mdservice.model.kinds import NEWS, QUOTES, Kind
from mdservice.model.news import ARTICLES_KEPT
from mdservice.model.symbol import parse_symbol

__all__ = ["EventStream", "router"]


router = APIRouter(prefix="/api/v1/market-data", tags=["market data"])

KEEP_ALIVE_S = 15.0
_KEEP_ALIVE = b": keep-alive\n\n"
_PAUSE_S = 0.01
"""The pause between two writes to one client. A thousand updates then share a few writes, and a
client takes only a small part of the event loop, which also reads the feed."""
_MAX_FRAMES = 512
"""Events for the next write, and one batch more. Further events wait in the service, which
conflates them."""

_SYMBOL = " *[A-Za-z0-9][A-Za-z0-9./_-]{0,31} *"
_NAMES = f" *({'|'.join(CHANNELS)}) *"


def _text(pattern: str) -> dict[str, Any]:
    """The schema of a text."""
    return {"type": "string", "pattern": f"^{pattern}$"}


def _listed(pattern: str, example: str) -> WithJsonSchema:
    """The schema of a query that lists texts, with commas between, and may be repeated."""
    items = _text(f"{pattern}(,{pattern})*")
    return WithJsonSchema({"type": "array", "items": items, "minItems": 1, "examples": [[example]]})


_ANY_SYMBOL = _text(f"({_SYMBOL}| *\\* *)")

Asked = Annotated[
    list[str] | None,
    WithJsonSchema({"type": "array", "items": _ANY_SYMBOL, "examples": [["AAPL"]]}),
    Query(description="The symbol; may be repeated."),
]
Listed = Annotated[
    list[str] | None,
    _listed(f"({_SYMBOL}| *\\* *)", "AAPL,MSFT"),
    Query(description="Comma-separated symbols; without them, all."),
]
AskedChannels = Annotated[
    list[str] | None,
    _listed(_NAMES, "quotes,trades"),
    Query(
        description="Comma-separated channels in Alpaca's names. Without them, `subscribe` takes "
        "those of the settings, and `unsubscribe` ends all."
    ),
]
ListedChannels = Annotated[
    list[str] | None,
    _listed(f" *({'|'.join((*CHANNELS, NEWS.channel))}) *", "trades,statuses"),
    Query(
        description="Comma-separated channels in Alpaca's names, or `news`; without them, "
        "`quotes`. `trades` brings corrections and cancellations too, `bars` updated bars."
    ),
]
Channel = Annotated[
    str,
    WithJsonSchema({"type": "string", "enum": list(CHANNELS), "examples": ["trades"]}),
    Path(description=f"One of {', '.join(CHANNELS)}."),
]
Symbol = Annotated[
    str,
    WithJsonSchema({**_text(_SYMBOL), "examples": ["AAPL"]}),
    Path(description="The symbol. `BTC/USD` may have its slash."),
]

_Responses = dict[int | str, dict[str, Any]]
_BAD_SYMBOL: _Responses = {422: {"model": Problem, "description": "A bad symbol, or no symbol."}}
_BAD_CHANNEL: _Responses = {
    422: {"model": Problem, "description": "A bad symbol or channel, or none."}
}
_CHANGE: _Responses = {
    422: {
        "model": Problem,
        "description": "A bad symbol or channel, no symbol, or channels that a symbol's class "
        "does not have.",
    },
    408: {"model": Problem, "description": "The body did not arrive in time."},
    409: {"model": Problem, "description": "The feed refused; nothing has changed."},
    413: {"model": Problem, "description": "The body is too long."},
}
_UNKNOWN: _Responses = {404: {"model": Problem, "description": "No price of this symbol yet."}}
_NO_RECORD: _Responses = {404: {"model": Problem, "description": "No record of this symbol yet."}}
_BAD_LIMIT: _Responses = {422: {"model": Problem, "description": "A bad symbol or limit."}}
Limit = Annotated[
    int,
    Query(description="How many at most; the service keeps 1,000.", ge=1, le=ARTICLES_KEPT),
]
_STREAM: _Responses = {
    200: {
        "description": "Server-sent events. The latest value of each symbol and channel comes "
        "first, then every record, under its Redis event name: `price.updated`, `trade.updated` "
        "… `feed.status` is each change of a feed's state. A client that reads slowly loses the "
        "oldest trades and gets the latest quote per symbol, seen as a step in `seq`.",
        "content": {
            "text/event-stream": {
                "schema": {},
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
        "description": "The symbols and channels, if they are not in the query.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "symbols": {"type": ["array", "null"], "items": _ANY_SYMBOL},
                        "symbol": {"anyOf": [_ANY_SYMBOL, {"type": "null"}]},
                        "channels": {
                            "type": ["array", "null"],
                            "items": _text(_NAMES),
                            "minItems": 1,
                        },
                    },
                },
                "example": {"symbols": ["AAPL", "MSFT"], "channels": ["quotes", "trades"]},
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
async def subscribe(
    request: Request, service: Service, symbol: Asked = None, channels: AskedChannels = None
) -> Response:
    """Subscribe to symbols: to all of them, or to none.

    A channel that a symbol's asset class does not have is skipped for it.
    """
    symbols, named = asked(symbol, channels, await request.body())
    return _changed(await service.subscribe(*symbols, channels=named, source="api"))


@router.post(
    "/unsubscribe",
    response_model=SubscriptionAnswer,
    response_model_exclude_none=True,
    responses=_CHANGE,
    openapi_extra=_BODY,
)
async def unsubscribe(
    request: Request, service: Service, symbol: Asked = None, channels: AskedChannels = None
) -> Response:
    """Unsubscribe from symbols, or from some of their channels.

    Those of open positions stay subscribed.
    """
    symbols, named = asked(symbol, channels, await request.body())
    return _changed(await service.unsubscribe(*symbols, channels=named, source="api"))


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
    return _several(
        b"prices", QUOTES, service.latest_records(QUOTES, listed_symbols(symbols) or None)
    )


@router.get(
    "/prices/{symbol:path}", response_model=PriceAnswer, responses={**_BAD_SYMBOL, **_UNKNOWN}
)
async def price(service: Service, symbol: Symbol) -> Response:
    """The latest price of one symbol."""
    return _latest(service, QUOTES, symbol, "price of {}", "quote")


@router.get(
    "/latest/{channel}",
    response_model=RecordsAnswer,
    response_model_exclude_unset=True,
    responses=_BAD_CHANNEL,
)
async def latest_of_channel(service: Service, channel: Channel, symbols: Listed = None) -> Response:
    """The latest record of each symbol that has one, from one channel.

    `updatedBars` is the same as `bars`.
    """
    kind = _kind_of(channel)
    return _several(b"records", kind, service.latest_records(kind, listed_symbols(symbols) or None))


@router.get(
    "/latest/{channel}/{symbol:path}",
    response_model=LatestAnswer,
    response_model_exclude_unset=True,
    responses={**_BAD_CHANNEL, **_NO_RECORD},
)
async def latest(service: Service, channel: Channel, symbol: Symbol) -> Response:
    """The latest record of one symbol, the same bytes as in its Redis key."""
    return _latest(service, _kind_of(channel), symbol, f"record of {{}} on {channel}", "record")


@router.get("/news", response_model=NewsAnswer, responses=_BAD_LIMIT)
async def news(service: Service, symbols: Listed = None, limit: Limit = 50) -> Response:
    """The newest articles about any of the symbols, or all, the newest first."""
    return _several(b"news", NEWS, service.news(listed_symbols(symbols), limit))


def _kind_of(channel: str) -> Kind[Any]:
    (kind, *_) = kinds_of([channel])
    if kind is NEWS:
        raise InvalidChannel("news has no latest value of a symbol: ask /api/v1/market-data/news")
    return kind


def _latest(
    service: ServiceHandle, kind: Kind[Any], symbol: str, what: str, record: str
) -> Response:
    name = parse_symbol(symbol)
    found = service.latest_record(kind, name)
    if found is None:
        wanted = name in service.subscriptions()
        hint = f"wait for its first {record}" if wanted else "subscribe to it first"
        raise HTTPException(404, f"there is no {what.format(name)} yet: {hint}")
    return Response(kind.encode(found), media_type="application/json")


def _several(name: bytes, kind: Kind[Any], records: Iterable[Any]) -> Response:
    body = b'{"%b":[%b]}' % (name, b",".join(map(kind.encode, records)))
    return Response(body, media_type="application/json")


@router.get("/stream", response_class=Response, responses={**_BAD_CHANNEL, **_STREAM})
async def stream(
    service: Service, symbols: Listed = None, channels: ListedChannels = None
) -> Response:
    """Records and changes of the feeds' state, as server-sent events."""
    return EventStream(service, listed_symbols(symbols), listed_channels(channels))


class EventStream(Response):
    """Server-sent events: an endless answer of records and ``feed.status`` events.

    The latest value of each symbol and channel comes first, then every later record. Without
    records, it sends a comment every 15 s. The stream ends when the client leaves, when the
    service closes its events, or when the server sets ``scope["state"]["closing"]``.

    Args:
        service: The source of the events.
        symbols: The symbols to send; empty for all.
        channels: The channels to send, in Alpaca's names.
    """

    media_type = "text/event-stream"

    def __init__(
        self, service: ServiceHandle, symbols: tuple[str, ...], channels: tuple[str, ...]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service = service
        self._symbols = symbols
        self._channels = channels
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
            opened = self._service.batches(*self._symbols, channels=self._channels)
            async with opened as items:
                try:
                    async for item in items:
                        await self._put(_frames(item))
                finally:
                    # Otherwise the garbage collector would end the generator some time later.
                    if isinstance(items, AsyncGenerator):
                        await items.aclose()
        self._ended = True
        self._filled.set()

    async def _put(self, frames: Sequence[bytes]) -> None:
        while len(self._frames) >= _MAX_FRAMES:
            self._taken = anyio.Event()
            await self._taken.wait()
        self._frames.extend(frames)
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


def _frames(item: RecordBatch[Any] | FeedStatus) -> list[bytes]:
    if isinstance(item, FeedStatus):
        return [b"event: feed.status\ndata: %b\n\n" % encode_status(item)]
    frame = b"event: %b\ndata: %%b\n\n" % item.kind.event.encode()
    return [frame % payload for payload in map(item.kind.encode, item.records)]
