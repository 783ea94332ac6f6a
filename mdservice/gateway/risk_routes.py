"""The calls under ``/api/v1/risk``, and the dependency that lets orders pass."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Protocol

import anyio
import msgspec
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema
from starlette.routing import NoMatchFound

from mdservice.errors import ConfigurationError, InvalidSymbol, StoreError
from mdservice.gateway.risk import StillHolds
from mdservice.gateway.tracker import PnlTracker
from mdservice.http_api.schemas import Answer, Problem
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbol, spellings
from mdservice.pnl.breaker import Breaker, encode_breaker
from mdservice.pnl.limits import LimitState, Order
from mdservice.pnl.numbers import sums_up
from mdservice.runtime.network import HttpClient, HttpFailed
from mdservice.settings import Settings, load_settings

__all__ = ["RISK_PATH", "Verdict", "judging", "risk_router", "trading_allowed"]

RISK_PATH: Final = "/api/v1/risk"
_JSON: Final = "application/json"
_STATE: Final = "mdservice_judges"
"""The attribute of an application's state that holds its judges: one for each router."""
_NAME: Final = "mdservice_risk"
"""The name of the route that shows the limits."""
_ASK_S: Final = 2.0
_MOST_BYTES: Final = 16 * 2**20
_MOST_ORDER_BYTES: Final = 4_096
_OK: Final = 200
_NOT_KNOWN: Final[dict[int | str, dict[str, Any]]] = {
    503: {"model": Problem, "description": "Redis cannot be asked, or the gateway does not run."}
}


class _Judge(Protocol):
    async def verdict(self) -> tuple[Breaker, list[str]]:
        """The breaker, and why limits cannot be judged.

        Raises:
            HTTPException: It is not known; status 503.
        """
        ...


class _OwnJudge:
    """The tracker of this application."""

    def __init__(self, tracker: PnlTracker) -> None:
        self._tracker = tracker

    async def verdict(self) -> tuple[Breaker, list[str]]:
        tracker = self._tracker
        if not tracker.is_running:
            raise HTTPException(503, "the limits are not judged: the application does not run")
        problems = await tracker.problems()
        try:
            breaker = await tracker.risk.breaker()
        except (StoreError, ConfigurationError) as exc:
            raise HTTPException(503, f"the breaker is not known: {exc}") from exc
        if tracker.risk.blind():
            # Events of a price may have been missed, or not have come yet.
            await tracker.read_keys()
        return breaker, problems + tracker.risk.blind()


class _OtherJudge:
    """The gateway of the settings, in another process."""

    def __init__(self, settings: Settings) -> None:
        self._url = f"http://{settings.gateway_http}{RISK_PATH}"
        token = settings.api_token
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def verdict(self) -> tuple[Breaker, list[str]]:
        http = HttpClient()
        answer = None
        try:
            with anyio.move_on_after(_ASK_S):
                answer = await http.get(
                    self._url,
                    headers=self._headers,
                    timeout_s=_ASK_S,
                    most_bytes=_MOST_BYTES,
                    any_status=True,
                )
            if answer is None:
                raise HTTPException(503, f"the gateway at {self._url} does not answer in time")
            if answer.status != _OK:
                raise HTTPException(503, f"the gateway at {self._url}: HTTP {answer.status}")
            found = msgspec.json.decode(answer.body, type=Verdict)
        except HttpFailed as exc:
            raise HTTPException(503, f"the gateway at {self._url} {exc}") from exc
        except (ValueError, RecursionError) as exc:
            raise HTTPException(503, f"the gateway at {self._url} answers otherwise") from exc
        finally:
            await http.aclose()
        return found.breaker, found.blind


class Verdict(msgspec.Struct):
    """What other programs read of a gateway's ``GET /api/v1/risk``."""

    breaker: Breaker
    blind: list[str]
    limits: list[LimitState] = []


@contextmanager
def judging(app: Any, tracker: PnlTracker) -> Iterator[None]:
    """Make the tracker a judge of an application inside this block."""
    judge = _OwnJudge(tracker)
    setattr(app.state, _STATE, [*getattr(app.state, _STATE, ()), judge])
    try:
        yield
    finally:
        left = [one for one in getattr(app.state, _STATE) if one is not judge]
        setattr(app.state, _STATE, left)


async def trading_allowed(request: Request) -> None:
    """A FastAPI dependency for routes that place orders: ``Depends(trading_allowed)``.

    It asks the limits of the application itself, where it mounts
    :func:`~mdservice.gateway.pnl_router`, of several routers all; otherwise the gateway at
    ``MDSERVICE_GATEWAY_HTTP``.

    Raises:
        HTTPException: 423 while the breaker is tripped. 503 while limits cannot be judged, Redis
            cannot be asked, or the gateway does not answer.
    """
    judges: Sequence[_Judge] = getattr(request.app.state, _STATE, ())
    if not judges:
        if _is_mounted(request.app):
            raise HTTPException(503, "the limits are not judged: the application does not run")
        try:
            judges = [_OtherJudge(load_settings(None, {}, os.environ))]
        except ConfigurationError as exc:
            raise HTTPException(503, f"the settings cannot be used: {exc}") from exc
    blind: list[str] = []
    for judge in judges:
        breaker, reasons = await judge.verdict()
        if breaker.tripped:
            raise HTTPException(423, f"trading is stopped: {breaker.rule} by {breaker.subject}")
        blind += reasons
    if blind:
        raise HTTPException(503, f"the limits cannot be judged: {'; '.join(blind)}")


def _is_mounted(app: Any) -> bool:
    """Whether the application has a router that judges, which does not run."""
    try:
        app.url_path_for(_NAME)
    except NoMatchFound:
        return False
    return True


def risk_router(tracker: PnlTracker) -> APIRouter:
    """The calls under ``/api/v1/risk``."""
    router = APIRouter(tags=["risk"])
    judge = _OwnJudge(tracker)

    @router.get(RISK_PATH, name=_NAME, response_model=RiskAnswer, responses=_NOT_KNOWN)
    async def risk() -> Response:
        """The circuit breaker, every limit and how far it is used, and what cannot be judged."""
        breaker, blind = await judge.verdict()
        return Response(await tracker.risk.encode(breaker, blind), media_type=_JSON)

    @router.post(
        f"{RISK_PATH}/check",
        response_model=CheckAnswer,
        responses={
            **_NOT_KNOWN,
            413: {"model": Problem, "description": "The body is too long."},
            422: {"model": Problem, "description": "It is not an order."},
        },
        openapi_extra={"requestBody": _ORDER_BODY},
    )
    async def check(request: Request) -> Response:
        """Whether an order is allowed, judged on the position as it would be.

        While limits cannot be judged, no order is allowed. While the breaker is tripped, only an
        order that reduces the position whose `qty` or `value` has tripped it is.
        """
        order = _read_order(await _body(request))
        breaker, blind = await judge.verdict()
        if not tracker.risk.has_price(order.symbol):
            await tracker.read_keys(spellings(order.symbol))
        reasons = list(dict.fromkeys([*blind, *tracker.risk.objections(order, breaker)]))
        answer = {"allowed": not reasons, "reasons": reasons}
        return Response(msgspec.json.encode(answer), media_type=_JSON)

    @router.post(
        f"{RISK_PATH}/reset",
        response_model=BreakerAnswer,
        responses={
            **_NOT_KNOWN,
            401: {"model": Problem, "description": "The token is missing or wrong."},
            409: {"model": Problem, "description": "A limit still holds, or cannot be judged."},
        },
    )
    async def reset(request: Request) -> Response:
        """Close the circuit breaker. Over TCP it needs the API's token, where one is set."""
        if not _may_reset(request, tracker.risk.token):
            challenge = {"WWW-Authenticate": 'Bearer realm="mdservice"'}
            detail = "a reset needs the token: send the header 'Authorization: Bearer <token>'"
            return JSONResponse({"detail": detail}, 401, challenge)
        if not tracker.is_running:
            raise HTTPException(503, "the limits are not judged: the application does not run")
        try:
            breaker = await tracker.risk.reset(await tracker.problems())
        except StillHolds as exc:
            raise HTTPException(409, str(exc)) from exc
        except (StoreError, ConfigurationError) as exc:
            raise HTTPException(503, f"the breaker is not known: {exc}") from exc
        return Response(encode_breaker(breaker), media_type=_JSON)

    return router


async def _body(request: Request) -> bytes:
    """The body, of which no more is kept than an order has."""
    body = b""
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > _MOST_ORDER_BYTES:
                raise HTTPException(413, f"an order has at most {_MOST_ORDER_BYTES} bytes")
    return body


def _read_order(body: bytes) -> Order:
    try:
        order = _OrderBody.model_validate_json(body)
    except ValidationError as exc:
        [first, *_] = exc.errors(include_url=False, include_context=False, include_input=False)
        where = "".join(f"{part}: " for part in first["loc"])
        raise HTTPException(422, f"it is not an order: {where}{first['msg']}") from exc
    return Order(order.symbol, order.side, order.qty, order.price)


def _may_reset(request: Request, token: str | None) -> bool:
    if token is None or request.client is None:  # a UNIX socket has no client address
        return True
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    matches = secrets.compare_digest(given.strip().encode(), token.encode())
    return scheme.lower() == "bearer" and matches


class BreakerAnswer(Answer):
    """The circuit breaker."""

    state: Literal["closed", "tripped"] = Field(description="`tripped`: trading is stopped.")
    rule: str | None = Field(
        description="The crossed limit; null if it is closed.", examples=["AAPL qty > 100"]
    )
    subject: str | None = Field(description="The symbol, or `total`.", examples=["AAPL"])
    value: float | None = Field(
        description="The value beyond the limit; of `stale` the age of the price in seconds.",
        examples=[120],
    )
    at: str | None = Field(
        description="The time of the change, UTC, RFC 3339; null if it has never changed.",
        examples=["2026-11-20T15:51:44.208912345Z"],
    )


class RiskAnswer(Answer):
    """The circuit breaker and the limits. Numbers are exact decimals."""

    breaker: BreakerAnswer = Field(description="As `risk:breaker` in Redis.")
    limits: list[_Limit] = Field(description="A limit for `*` once for each held symbol.")
    blind: list[str] = Field(
        description="Why limits cannot be judged; trading is not allowed meanwhile.",
        examples=[["MSFT: the price is stale"]],
    )
    on_trip: _OnTrip | None = Field(
        default=None, description="Absent if the gateway has no actions for a trip."
    )


class _Action(Answer):
    """An action of a trip."""

    action: Literal["suspend_trade", "cancel_orders"] = Field(description="Its name.")
    state: Literal["pending", "done", "failed", "left"] = Field(
        description="`failed`: refused, or not done after the last try. `left`: the breaker was "
        "reset before it was done."
    )
    detail: str | None = Field(description="Why; null if nothing is to be said.")
    at: str | None = Field(description="When it got this state; null while it is pending.")


class _OnTrip(Answer):
    """What a trip does at the broker."""

    actions: list[str] = Field(
        description="What this gateway does after a trip that it makes.",
        examples=[["suspend_trade", "cancel_orders"]],
    )
    trip: str | None = Field(
        description="The breaker's `at` of the last trip with actions; null if there was none.",
        examples=["2026-11-20T15:51:44.208912345Z"],
    )
    outcomes: list[_Action] = Field(description="The actions of that trip.")


class _Limit(Answer):
    """A limit of one symbol, or of the total."""

    rule: str = Field(description="As it was written.", examples=["AAPL qty > 100"])
    subject: str = Field(
        description="The symbol or `total`; `*` if nothing is held.", examples=["AAPL"]
    )
    value: float | None = Field(description="Null while it is not known.", examples=[40])
    used: float | None = Field(
        description="The fraction of the limit that is used; above 1 it is crossed. Null while it "
        "cannot be judged.",
        examples=[0.4],
    )


class CheckAnswer(Answer):
    """Whether an order is allowed."""

    allowed: bool = Field(description="Whether it may be placed.")
    reasons: list[str] = Field(
        description="Why it is not; empty if it is.",
        examples=[["AAPL qty > 100: AAPL would be at 120"]],
    )


def _symbol(given: str) -> str:
    try:
        symbol = parse_symbol(given)
    except InvalidSymbol as exc:
        raise ValueError(str(exc)) from exc
    if symbol == EVERY_SYMBOL:
        raise ValueError("is not one symbol")
    return symbol


def _usable(number: Decimal) -> Decimal:
    if not sums_up(number):
        raise ValueError("has too many digits")
    return number


_Number = Annotated[
    Decimal,
    Field(gt=0, allow_inf_nan=False),
    AfterValidator(_usable),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 1e-40, "maximum": 1e29},
                {"type": "string", "pattern": r"^([0-9]{1,15}\.[0-9]{0,8}[1-9]|[1-9][0-9]{0,14})$"},
            ]
        }
    ),
]


class _OrderBody(Answer):
    symbol: Annotated[
        str,
        AfterValidator(_symbol),
        WithJsonSchema({"type": "string", "pattern": "^ *[A-Za-z0-9][A-Za-z0-9./_-]{0,31} *$"}),
    ]
    side: Literal["buy", "sell"]
    qty: _Number
    price: _Number | None = None


_ORDER_BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": "An order: `qty` above 0 in the unit of the position, the `price` of a limit "
    "order; without it the market's.",
    "content": {
        _JSON: {
            "schema": _OrderBody.model_json_schema(),
            "example": {"symbol": "AAPL", "side": "buy", "qty": 20, "price": 187.5},
        }
    },
}
