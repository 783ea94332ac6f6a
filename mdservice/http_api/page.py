"""The page at ``/``: static files, and one stream of all that they show.

The page asks nothing of other hosts, and its content security policy allows nothing else. The
stream looks at the service a few times a second and sends what has changed, so its cost depends on
the number of symbols and not on the rate of quotes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from importlib.resources import files
from itertools import islice
from typing import Annotated, Any, Final, Protocol

import anyio
import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from mdservice.errors import MDServiceError
from mdservice.http_api.handle import ServiceHandle
from mdservice.http_api.monitoring import Service
from mdservice.http_api.requests import PAGE_FILES
from mdservice.model.events import encode_status
from mdservice.model.kinds import QUOTES, STATUSES, Kind
from mdservice.model.status import status_to_json
from mdservice.model.symbol import EVERY_SYMBOL

__all__ = ["Account", "PageView", "router"]

router = APIRouter(tags=["page"])

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_LOOK_S: Final = 0.2
"""How often prices are looked at: five updates a second and symbol at most."""
_STATUS_S: Final = 1.0
_ACCOUNT_S: Final = 0.5
_LONGEST_S: Final = 5.0
_PER_COST: Final = 20.0
"""A look that took long is followed by a pause that is this many times longer."""
_MOST_ROWS: Final = 2000
"""The symbols that one page gets; more are reached by the filter."""

Match = Annotated[
    str,
    Query(
        description="Only symbols with this text in them, in upper or lower case.", max_length=32
    ),
]


class Account(Protocol):
    """What the page shows of positions and limits; a gateway has it."""

    async def whole(self) -> bytes:
        """Every position at its price, and the totals, as JSON.

        Raises:
            MDServiceError: The positions are not known.
        """
        ...

    async def risk(self) -> bytes | None:
        """The breaker and the limits, as JSON; None where there are no limits.

        Raises:
            MDServiceError: Redis cannot be asked.
        """
        ...


def _serve_file(name: str, media_type: str) -> Callable[[], Any]:
    async def serve() -> Response:
        content = files(__package__).joinpath("static", name).read_bytes()
        return Response(content, media_type=media_type, headers=_HEADERS)

    return serve


for _path, (_name, _type) in PAGE_FILES.items():
    router.add_api_route(
        _path, _serve_file(_name, _type), include_in_schema=False, response_class=Response
    )


@router.get("/api/v1/page/stream", response_class=EventSourceResponse, include_in_schema=False)
async def page_stream(
    request: Request, service: Service, match: Match = ""
) -> AsyncIterator[ServerSentEvent]:
    """What the page at `/` shows, as server-sent events. Its form may change with each version.

    `prices` and `halts`: the changed records. `status`: each second. `account`, `risk`: positions
    at their prices, and the limits. `feed`: each change of a feed's state.
    """
    closing: anyio.Event | None = request.scope.get("state", {}).get("closing")
    shown = PageView(service, request.app.state.account, match.upper())
    while closing is None or not closing.is_set():
        began_s = time.perf_counter()
        events = list(shown.changes())
        pause_s = max(_LOOK_S, (time.perf_counter() - began_s) * _PER_COST)
        for name, data in (*events, *await shown.account_changes()):
            yield ServerSentEvent(event=name, raw_data=data.decode())
        await anyio.sleep(pause_s)


class PageView:
    """What one page has got, and what it has not."""

    def __init__(
        self,
        service: ServiceHandle,
        account: Account | None,
        match: str,
    ) -> None:
        self._service = service
        self._account = account
        self._match = match
        self._wanted: Mapping[str, object] = {}
        """The symbols that the page shows, of the last status."""
        self._sent: dict[str, dict[str, Any]] = {}
        self._last: dict[str, bytes] = {}
        self._next_s: dict[str, float] = {}
        self._seen = 0

    def changes(self) -> Iterator[tuple[str, bytes]]:
        """The names and the data of the events that are due."""
        if self._is_due("status", _STATUS_S):
            yield "status", self._status()
        for name, kind in (("prices", QUOTES), ("halts", STATUSES)):
            if records := self._changed(name, kind):
                yield name, b"[%b]" % b",".join(map(kind.encode, records))
        new, self._seen = self._service.states_since(self._seen)
        for state in new:
            yield "feed", encode_status(state)

    async def account_changes(self) -> list[tuple[str, bytes]]:
        """Those of positions and limits, which may have to ask Redis."""
        if self._account is None or not self._is_due("account", _ACCOUNT_S):
            return []
        found, began_s = [], time.thread_time()
        for name, read in (("account", self._account.whole), ("risk", self._account.risk)):
            try:
                data = await read()
            except MDServiceError as exc:
                data = msgspec.json.encode({"error": str(exc)})
            data = b"null" if data is None else data
            if data != self._last.get(name, b"null"):
                self._last[name] = data
                found.append((name, data))
        cost_s = (time.thread_time() - began_s) * _PER_COST
        self._next_s["account"] = anyio.current_time() + min(max(_ACCOUNT_S, cost_s), _LONGEST_S)
        return found

    def _is_due(self, name: str, every_s: float) -> bool:
        now_s = anyio.current_time()
        if now_s < self._next_s.get(name, 0.0):
            return False
        self._next_s[name] = now_s + every_s
        return True

    def _status(self) -> bytes:
        sources = self._service.subscriptions()
        chosen = [symbol for symbol in sorted(sources) if self._match in symbol]
        self._wanted = sources
        for sent in self._sent.values():
            for symbol in [symbol for symbol in sent if not self._shows(symbol)]:
                del sent[symbol]  # the page has removed its row
        return msgspec.json.encode(
            {
                "status": status_to_json(self._service.status()),
                "symbols": {symbol: sources[symbol] for symbol in chosen[:_MOST_ROWS]},
                "more": max(0, len(chosen) - _MOST_ROWS),
                "left_out": dict(islice(self._service.left_out().items(), _MOST_ROWS)),
                "account": self._account is not None,
            }
        )

    def _shows(self, symbol: str) -> bool:
        wanted = symbol in self._wanted or EVERY_SYMBOL in self._wanted
        return wanted and self._match in symbol

    def _changed(self, name: str, kind: Kind[Any]) -> list[Any]:
        """The records that the page does not have yet, of at most so many symbols."""
        sent = self._sent.setdefault(name, {})
        changed = []
        for record in self._service.latest_records(kind):
            symbol = record.symbol
            known = sent.get(symbol)
            if known is record or not self._shows(symbol):
                continue
            if known is None and len(sent) >= _MOST_ROWS:
                continue
            sent[symbol] = record
            changed.append(record)
        return changed
