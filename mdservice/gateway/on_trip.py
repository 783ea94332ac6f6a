"""What a trip of the breaker does at the broker: suspends trading, cancels the open orders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Literal

import anyio
import msgspec

from mdservice.clock import Clock
from mdservice.errors import ConfigurationError, MDServiceError
from mdservice.gateway.redis_calls import HOLD_MS, RedisCalls
from mdservice.gateway.webhook import Webhook
from mdservice.model.timestamps import format_ns
from mdservice.observability.logging import get_logger, masked
from mdservice.pnl.alerts import Alert
from mdservice.pnl.breaker import Breaker
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.network import HttpClient, HttpFailed
from mdservice.settings import Settings

__all__ = ["Action", "OnTrip", "TradingAccount", "TripActions"]

_log = get_logger(__name__)

_LOOK_S: Final = 1.0
_HOLD_S: Final = HOLD_MS / 3_000
_MOST_TRIES: Final = 12
_FIRST_S, _LIMIT_S = 0.5, 30.0
"""With at most 5 s for each request, the last try ends within six minutes."""
_TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 16 * 2**20
_MOST_DETAIL: Final = 200
_OK, _REDIRECTS, _BROKEN = 200, 300, 500
_WORTH_ANOTHER_TRY: Final = frozenset((408, 425, 429))

ActionName = Literal["suspend_trade", "cancel_orders"]
_CALLS: Final[dict[ActionName, tuple[str, str, bytes | None]]] = {
    "suspend_trade": ("PATCH", "/v2/account/configurations", b'{"suspend_trade":true}'),
    "cancel_orders": ("DELETE", "/v2/orders", None),
}
"""In the order in which they are executed."""


class Action(msgspec.Struct, frozen=True):
    """One action of a trip.

    Attributes:
        action: Its name.
        state: ``pending``; ``done``; ``failed``: refused, or not done after the last try; ``left``:
            the breaker was reset before it was done.
        detail: What happened, for people; None if nothing is to be said.
        at: When it got this state, RFC 3339; None while it is pending.
    """

    action: ActionName
    state: Literal["pending", "done", "failed", "left"] = "pending"
    detail: str | None = None
    at: str | None = None


class TripActions(msgspec.Struct, frozen=True):
    """What the key ``risk:on_trip`` holds.

    Attributes:
        trip: The breaker's ``at`` of the trip.
        account: A hash that names the account and does not show its key. If the gateway that has
            tripped the breaker dies, another gateway of the same account continues.
        actions: The actions.
    """

    trip: str
    account: str
    actions: tuple[Action, ...]

    @property
    def pending(self) -> tuple[ActionName, ...]:
        """The actions that are not settled."""
        return tuple(one.action for one in self.actions if one.state == "pending")


_encode = msgspec.json.encode
_decoder = msgspec.json.Decoder(TripActions)


class TradingAccount:
    """The account at the trading API.

    Source: Alpaca, trading API, ``PATCH /v2/account/configurations`` and ``DELETE /v2/orders``,
    whose answer has a status for each order.

    Args:
        settings: The keys and the trading URL.
        http: The client; closed by its owner.

    Raises:
        ConfigurationError: A key is missing, or prices are simulated and the account is not; or
            the environment has an unusable proxy or certificate file.
    """

    def __init__(self, settings: Settings, http: HttpClient) -> None:
        for value, variable in (
            (settings.api_key, "ALPACA_API_KEY"),
            (settings.secret_key, "ALPACA_SECRET_KEY"),
        ):
            if value is None:
                raise ConfigurationError(
                    f"on_trip needs the keys of the account to act on: set {variable}, or leave "
                    "MDSERVICE_ON_TRIP out"
                )
        if settings.simulator_embedded and "trading_url" not in settings.sources:
            raise ConfigurationError(
                "on_trip needs the account to act on, and prices are simulated: set "
                "MDSERVICE_TRADING_URL, or leave MDSERVICE_ON_TRIP out"
            )
        self.url = settings.resolved_trading_url().rstrip("/")
        self.headers = {
            "APCA-API-KEY-ID": settings.api_key or "",
            "APCA-API-SECRET-KEY": settings.secret_key or "",
        }
        named = f"{self.url} {settings.api_key}".encode()
        self.id = hashlib.sha256(named).hexdigest()[:16]
        self._http = http
        http.prepare(self.url)

    async def act(self, name: ActionName) -> tuple[str | None, bool]:
        """Execute an action.

        Returns:
            Why it is not done, or None; and whether another try may help.
        """
        method, path, content = _CALLS[name]
        headers = {**self.headers, "Content-Type": "application/json"}
        answer = None
        try:
            with anyio.move_on_after(_TIMEOUT_S):
                answer = await self._http.request(
                    method,
                    f"{self.url}{path}",
                    content,
                    headers=headers,
                    timeout_s=_TIMEOUT_S,
                    most_bytes=_MOST_BYTES,
                )
        except HttpFailed as exc:
            return masked(str(exc)), exc.kind != "url"
        if answer is None:
            return f"no answer within {_TIMEOUT_S:g} s", True
        status = answer.status
        if not _OK <= status < _REDIRECTS:
            helps = status >= _BROKEN or status in _WORTH_ANOTHER_TRY
            return f"HTTP {status}{_message(answer.body)}", helps
        return _unfinished(name, answer.body), True


class OnTrip:
    """Executes the actions of each trip that this gateway makes, once per trip.

    What is to be done is in Redis, written in one transaction with the trip. So if the gateway dies
    before an action is settled, it executes the action after its restart, or another gateway of the
    same account does, which has the same setting. An action may then be executed twice, which
    changes nothing. While Redis is away, the actions do not wait for it.

    Args:
        named: The actions.
        account: Where to execute them.
        redis: Keeps what is to be done, and the outcome.
        clock: The time.
        webhook: Gets each outcome, or None.
    """

    def __init__(
        self,
        named: Sequence[ActionName],
        account: TradingAccount,
        redis: RedisCalls,
        clock: Clock,
        webhook: Webhook | None,
    ) -> None:
        self._named = tuple(name for name in _CALLS if name in named)
        self._account = account
        self._redis = redis
        self._clock = clock
        self._webhook = webhook
        self._last: TripActions | None = None
        """The actions of the last trip that this gateway has executed or is executing."""
        self._not_in_redis: Alert | None = None
        """The crossing whose actions began before its trip was in Redis."""
        self._saved = True
        self._tries = 0
        self._begun = anyio.Event()

    def of_trip(self, trip: Breaker, crossing: Alert) -> bytes:
        """The content of the key ``risk:on_trip`` for a new trip."""
        return _encode(self._of(trip, crossing))

    def begin(self, trip: Breaker, crossing: Alert, *, in_redis: bool) -> None:
        """Begin the actions of a trip, unless they have begun.

        Args:
            trip: The tripped breaker.
            crossing: What has tripped it.
            in_redis: Whether the trip is in Redis.
        """
        again = self._not_in_redis is crossing
        self._last = self._of(trip, crossing)
        self._not_in_redis = None if in_redis else crossing
        if not again:
            self._tries = 0
            _log.warning("on_trip_begins", actions=", ".join(self._named))
        self._begun.set()

    async def report(self) -> bytes:
        """``{"actions":["suspend_trade"],"trip":"2026-…Z","outcomes":[{"action":…,"state":…}]}``."""
        found = self._last
        with suppress(MDServiceError):  # then what this gateway knows is shown
            found = _decoded(await self._redis.actions()) or found
        return _encode(
            {
                "actions": self._named,
                "trip": None if found is None else found.trip,
                "outcomes": () if found is None else found.actions,
            }
        )

    async def run(self, standing: Callable[[], Breaker]) -> None:
        """Execute until cancelled.

        Args:
            standing: Returns the breaker as this gateway knows it.
        """
        while True:
            if self._last is not None and self._last.pending:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._hold)
                    await self._execute(standing)
                    tasks.cancel_scope.cancel()
            await self._save()
            with anyio.move_on_after(_LOOK_S):
                await self._begun.wait()
            self._begun = anyio.Event()
            await self._take_over(standing())

    async def _execute(self, standing: Callable[[], Breaker]) -> None:
        backoff = Backoff(_FIRST_S, _LIMIT_S)
        while self._last is not None and (pending := self._last.pending):
            if not standing().tripped:
                for name in pending:
                    self._settle(name, "left", "the breaker was reset before")
                return
            self._begun = anyio.Event()
            self._tries += 1
            for name in pending:
                await self._try(name, last=self._tries >= _MOST_TRIES)
            await self._save()
            if self._last.pending:
                with anyio.move_on_after(backoff.next_s()):
                    await self._begun.wait()  # a trip that comes meanwhile does not wait

    async def _try(self, name: ActionName, *, last: bool) -> None:
        tries = self._tries
        reason, helps = await self._account.act(name)
        if self._last is None or self._tries != tries:
            return  # another trip came meanwhile
        if reason is None and name == "cancel_orders" and "suspend_trade" in self._last.pending:
            # Orders may still be placed until trading is suspended.
            reason, helps = "trading is not suspended yet", True
        if reason is None:
            self._settle(name, "done", None)
        elif not helps or last:
            self._settle(name, "failed", reason[:_MOST_DETAIL])
        else:
            _log.warning("on_trip_tried_again", action=name, reason=reason)

    def _settle(
        self, name: ActionName, state: Literal["done", "failed", "left"], detail: str | None
    ) -> None:
        if self._last is None:
            return
        settled = Action(name, state, detail, format_ns(self._clock.utc_ns()))
        actions = tuple(settled if one.action == name else one for one in self._last.actions)
        self._last = msgspec.structs.replace(self._last, actions=actions)
        self._saved = False
        if state == "done":
            _log.warning("on_trip_done", action=name)
        else:
            _log.error("on_trip_not_done", action=name, state=state, reason=detail)
        if self._webhook is not None:
            content = _encode({"trip": self._last.trip, **msgspec.to_builtins(settled)})
            why = "" if detail is None else f": {detail}"
            self._webhook.send(content, f"mdservice: after the trip, {name} is {state}{why}")

    async def _save(self) -> None:
        """Write the outcome, unless the key is of another trip."""
        last = self._last
        if self._saved or last is None:
            return

        def decide(content: bytes | None) -> bytes | None:
            found = _decoded(content)
            return None if found is not None and found.trip != last.trip else _encode(last)

        try:
            await self._redis.change_actions(decide)
        except MDServiceError as exc:
            _log.warning("on_trip_not_saved", reason=masked(str(exc)))
        else:
            self._saved = self._last is last

    async def _hold(self) -> None:
        while True:
            with suppress(MDServiceError):  # without it, another gateway may execute them too
                await self._redis.hold_actions()
            await anyio.sleep(_HOLD_S)

    async def _take_over(self, breaker: Breaker) -> None:
        """Take the actions of a trip whose gateway has died."""
        mine = self._last
        if not breaker.tripped or (mine is not None and mine.trip == breaker.at):
            return
        with suppress(MDServiceError):  # it is tried again in a second
            if not self._is_for_me(_decoded(await self._redis.actions()), breaker):
                return
            held = await self._redis.hold_actions()
            # Its gateway may have settled them just now.
            found = _decoded(await self._redis.actions())
            if held and self._last is mine and self._is_for_me(found, breaker):
                _log.warning("on_trip_taken_over")
                self._last, self._tries = found, 0

    def _is_for_me(self, found: TripActions | None, breaker: Breaker) -> bool:
        return (
            found is not None
            and found.trip == breaker.at
            and found.account == self._account.id
            and bool(found.pending)
            and set(found.pending) <= set(self._named)
        )

    def _of(self, trip: Breaker, crossing: Alert) -> TripActions:
        at = trip.at or ""
        if self._last is not None and self._not_in_redis is crossing:
            return msgspec.structs.replace(self._last, trip=at)
        return TripActions(at, self._account.id, tuple(map(Action, self._named)))


def _decoded(content: bytes | None) -> TripActions | None:
    """What is to be done; None also for any other text."""
    try:
        return None if content is None else _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


class _Configurations(msgspec.Struct):
    suspend_trade: bool = True


class _Canceled(msgspec.Struct):
    status: int = _OK


_configurations = msgspec.json.Decoder(_Configurations)
_canceled = msgspec.json.Decoder(list[_Canceled])


def _unfinished(name: ActionName, body: bytes) -> str | None:
    """What the answer says is not done; None also if it does not say."""
    try:
        if name == "suspend_trade":
            suspended = _configurations.decode(body).suspend_trade
            return None if suspended else "the account still allows trading"
        failed = sum(one.status >= _BROKEN for one in _canceled.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return f"{failed} orders were not canceled" if failed else None


class _Refusal(msgspec.Struct):
    message: str = ""


_refusal = msgspec.json.Decoder(_Refusal)


def _message(body: bytes) -> str:
    """What the broker says: ``: forbidden``; empty if it says nothing."""
    try:
        message = _refusal.decode(body).message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    text = "".join(char if char.isprintable() else "?" for char in message[:_MOST_DETAIL])
    return masked(f": {text}") if text else ""
