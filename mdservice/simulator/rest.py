"""Alpaca's REST side: a request in, its answer out.

Past and latest records are in ``rest_history``, the account in ``rest_trading``. What all
requests share is here: the login, the calls of a minute, planned faults, and the clock of the
market.

Pure: the time is an argument.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from email.utils import formatdate
from urllib.parse import parse_qsl, unquote
from zoneinfo import ZoneInfo

import attrs
import msgspec
from websockets.http11 import Request, Response

from mdservice.simulator.faults import (
    CutRest,
    GarbleRest,
    RefuseRest,
    RestFaults,
    SlowRest,
)
from mdservice.simulator.http import (
    Answer,
    Call,
    Endpoint,
    HttpAnswer,
    RefusedRequest,
    json_response,
    malformed,
)
from mdservice.simulator.rest_trading import TradingApi
from mdservice.simulator.session import Account

__all__ = ["Quota", "RateLimit", "RestApi", "RestRequest", "encode_clock"]

_OPENS, _CLOSES = time(9, 30), time(16, 0)
_SATURDAY = 5
_WINDOW_S = 60.0
_MOST_KEYS = 1_000

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _WRONG_METHOD = 401, 403, 404, 405
_TOO_MANY, _RATE_CODE = 429, 42910000
_MOST_PARAMETERS = 100

_Params = Mapping[str, str]
_Headers = dict[str, str]


class RestApi:
    """Answers for the data host and for the trading host.

    The one has what the markets answer, such as ``/v2/stocks/quotes``, the other ``/v2/clock``,
    ``/v2/account``, ``/v2/positions`` and ``/v2/orders``.

    Args:
        routes: The markets' answers to GET requests, by path.
        trading: Answers about the account.
        account: Whose key and secret are asked for, where it has any.
        rate_limit: Calls per key and minute; None for any number, without the headers.
        requests_size: How many requests are kept.
    """

    def __init__(
        self,
        routes: Mapping[str, Answer],
        trading: TradingApi,
        account: Account,
        *,
        rate_limit: int | None,
        requests_size: int,
    ) -> None:
        self.faults = RestFaults()
        self.market_open = True
        self.market_hours: tuple[str, str] | None = None
        """Next open and next close; None for the usual ones."""
        self.requests: deque[RestRequest] = deque(maxlen=requests_size)
        self._account = account
        self._limit = None if rate_limit is None else RateLimit(rate_limit)
        self._endpoints: dict[str, dict[str, Endpoint]] = {
            "/v2/clock": {"GET": Endpoint(self._clock)},
            **{path: dict(methods) for path, methods in trading.endpoints().items()},
        }
        self._endpoints |= {path: {"GET": Endpoint(route)} for path, route in routes.items()}
        self._prefixes = tuple(path for path in self._endpoints if path.endswith("/"))

    def answer(self, request: Request, body: bytes, now_s: float, now_ns: int) -> HttpAnswer:
        """Answer a request, unless a fault prevents it.

        Args:
            request: Its line and headers.
            body: What came behind them.
            now_s: Monotonic seconds.
            now_ns: UTC nanoseconds.
        """
        path, _, query = request.path.partition("?")
        headers = {"Date": formatdate(now_ns / 1e9, usegmt=True)}
        allowed = self._charge(request, now_s, now_ns, headers)
        params: _Params = {}
        try:
            params = _parameters(query)
            if not allowed:
                raise RefusedRequest(_TOO_MANY, _RATE_CODE, "too many requests.")  # noqa: TRY301
            endpoint, name = self._find(request, path, params)
            status, said = endpoint.status, endpoint.answer(Call(params, now_ns, name, body))
        except RefusedRequest as refused:
            status, said = refused.status, refused.body()
        self.requests.append(RestRequest(now_ns, request.method, path, params, status))
        if self.faults.take(GarbleRest, path):
            said = _half(said)
        response = json_response(status, said, headers)
        cut = self.faults.take(CutRest, path)
        if cut is not None:
            _cut(response)
        slow = self.faults.take(SlowRest, path)
        stalls = cut is not None and cut.stalls
        return HttpAnswer(response, slow.delay_s if slow else 0.0, stalls=stalls)

    def _charge(self, request: Request, now_s: float, now_ns: int, headers: _Headers) -> bool:
        """Count the call and say in the headers what is left; False for one too many."""
        if self._limit is None:
            return True
        quota = self._limit.take(request.headers.get("APCA-API-KEY-ID", ""), now_s)
        headers["X-RateLimit-Limit"] = str(self._limit.per_minute)
        headers["X-RateLimit-Remaining"] = str(quota.remaining)
        headers["X-RateLimit-Reset"] = str(math.ceil(now_ns / 1e9 + quota.reset_in_s))
        return quota.allowed

    def _find(self, request: Request, path: str, params: _Params) -> tuple[Endpoint, str]:
        """What answers a request that may be answered, and the name in its path."""
        planned = self.faults.take(RefuseRest, path, params.get("symbols", ""))
        if planned is not None:
            raise RefusedRequest(planned.status, planned.code, planned.message)
        name = ""
        for prefix in self._prefixes:
            if path not in self._endpoints and path.startswith(prefix):
                path, name = prefix, unquote(path.removeprefix(prefix))
        methods = self._endpoints.get(path)
        if methods is None:
            raise RefusedRequest(_NOT_FOUND, 0, "endpoint not found.")
        endpoint = methods.get(request.method)
        if endpoint is None:
            raise RefusedRequest(_WRONG_METHOD, 0, "method not allowed.")
        self._check_login(request)
        return endpoint, name

    def _check_login(self, request: Request) -> None:
        """Refuse other keys than the account's.

        Source: Alpaca's OpenAPI description has 401, its FAQ 403; the texts are inferred.
        """
        if self._account.key is None and self._account.secret is None:
            return
        key = request.headers.get("APCA-API-KEY-ID")
        secret = request.headers.get("APCA-API-SECRET-KEY")
        if not key or not secret:
            raise RefusedRequest(_UNAUTHORIZED, 0, "unauthorized.")
        if not self._account.accepts(key, secret):
            raise RefusedRequest(_FORBIDDEN, 0, "forbidden.")

    def _clock(self, call: Call) -> bytes:
        return encode_clock(call.now_ns, is_open=self.market_open, hours=self.market_hours)


@attrs.frozen
class RestRequest:
    """What a client asked for.

    Attributes:
        at_ns: When, UTC nanoseconds.
        method: ``GET``, ``POST``, ``PATCH`` or ``DELETE``.
        path: ``/v2/stocks/quotes``.
        params: The query's parameters.
        status: The answer's HTTP status.
    """

    at_ns: int
    method: str
    path: str
    params: Mapping[str, str]
    status: int


def _parameters(query: str) -> dict[str, str]:
    """The query's parameters; the first of those with one name."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        malformed("too many parameters")
    return dict(reversed(pairs))


def _half(body: bytes) -> bytes:
    return body[: max(1, len(body) // 2)]


def _cut(response: Response) -> None:
    """Send half of the body, with the whole length in the header."""
    response.body = _half(bytes(response.body))


def encode_clock(now_ns: int, *, is_open: bool, hours: tuple[str, str] | None = None) -> bytes:
    """``{"timestamp":"…","is_open":true,"next_open":"…","next_close":"…"}``, New York's time.

    ``is_open`` is the configured state. Unless ``hours`` has the next open and close, they fit
    it, by the usual hours of the days from Monday to Friday, without holidays.
    """
    second, fraction = divmod(now_ns, 1_000_000_000)
    now = datetime.fromtimestamp(second, UTC).astimezone(ZoneInfo("America/New_York"))
    if is_open:
        next_close = _next(now, _CLOSES)
        next_open = _next(next_close, _OPENS)
    else:
        next_open = _next(now, _OPENS)
        next_close = _next(next_open, _CLOSES)
    opens, closes = hours or (next_open.isoformat(), next_close.isoformat())
    # Python's text ends with microseconds; the offset follows the nanoseconds.
    text = now.isoformat()
    stamp = f"{text[:19]}.{fraction:09d}{text[19:]}"
    return msgspec.json.encode(
        {
            "timestamp": stamp,
            "is_open": is_open,
            "next_open": opens,
            "next_close": closes,
        }
    )


def _next(after: datetime, at: time) -> datetime:
    """The first weekday's ``at`` after this moment."""
    day = after.date()
    while True:
        moment = datetime.combine(day, at, after.tzinfo)
        if moment > after and day.weekday() < _SATURDAY:
            return moment
        day += timedelta(days=1)


@attrs.frozen
class Quota:
    """The remaining calls of a key.

    Attributes:
        allowed: Whether the call may be answered.
        remaining: Calls left until the reset.
        reset_in_s: Seconds until all calls are there again.
    """

    allowed: bool
    remaining: int
    reset_in_s: float


class RateLimit:
    """Counts the calls of each key in windows of a minute, which begin with a first call.

    Args:
        per_minute: Calls allowed in each.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._windows: dict[str, tuple[float, int]] = {}

    def take(self, key: str, now_s: float) -> Quota:
        """Count one call; a refused one counts for nothing."""
        ends_s, used = self._windows.get(key, (now_s, 0))
        if ends_s <= now_s:
            self._forget_ended(now_s)
            ends_s, used = now_s + _WINDOW_S, 0
        allowed = used < self.per_minute
        used += allowed
        self._windows[key] = ends_s, used
        return Quota(allowed, self.per_minute - used, ends_s - now_s)

    def _forget_ended(self, now_s: float) -> None:
        if len(self._windows) < _MOST_KEYS:
            return
        self._windows = {key: window for key, window in self._windows.items() if window[0] > now_s}
        if len(self._windows) >= _MOST_KEYS:
            del self._windows[next(iter(self._windows))]
