"""The limits and the circuit breaker of one gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Final

import anyio

from mdservice.clock import Clock
from mdservice.errors import ConfigurationError, MDServiceError, StoreRefused
from mdservice.gateway.on_trip import OnTrip
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.gateway.webhook import Webhook
from mdservice.observability.logging import get_logger, masked
from mdservice.pnl.alerts import Alert
from mdservice.pnl.breaker import (
    CLOSED,
    Breaker,
    encode_breaker,
    has_lost,
    reset_at,
    tripped_by,
)
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.limits import Limits, Order, encode_risk, has_price
from mdservice.pnl.numbers import short
from mdservice.pnl.rules import parse_rule
from mdservice.runtime.backoff import Backoff

__all__ = ["Risk", "StillHolds", "make_limits"]

_log = get_logger(__name__)

_FIRST_S, _LIMIT_S = 0.2, 5.0
_LOOK_S: Final = 1.0
"""How often the breaker is read, so that a key that was lost is written again."""


class StillHolds(MDServiceError):
    """The breaker cannot be reset, because a limit is still crossed or cannot be judged."""


class Risk:
    """Judges the limits after each event, and trips the breaker in Redis.

    The key in Redis is the breaker of all gateways. A crossing counts here at once, also while
    Redis cannot be reached, and is written as soon as it can. The breaker trips while a limit
    holds, so it cannot stay closed because another gateway has reset it. A tripped breaker that
    Redis has lost is written again.

    Args:
        limits: The limits.
        engine: The P&L.
        redis: Holds the breaker.
        clock: The time.
        webhook: Gets each change that this gateway makes, or None.
        token: What a reset over TCP needs, or None for nothing.
        on_trip: Executes the actions of the trips that this gateway makes, or None.

    Attributes:
        token: As given.
        on_trip: As given.
        trips: How often this gateway has tripped the breaker.
        resets: How often it has reset it.
        crossings: How often a limit was crossed, also while the breaker was tripped.
    """

    def __init__(
        self,
        limits: Limits,
        engine: PnlEngine,
        redis: RedisCalls,
        clock: Clock,
        webhook: Webhook | None = None,
        token: str | None = None,
        on_trip: OnTrip | None = None,
    ) -> None:
        self.token = token
        self.on_trip = on_trip
        self.trips = self.resets = self.crossings = 0
        self._limits = limits
        self._engine = engine
        self._redis = redis
        self._clock = clock
        self._webhook = webhook
        self._known = CLOSED
        """The breaker as it was last read or written."""
        self._is_known = False
        self._crossing: Alert | None = None
        """The crossing that is not in Redis yet."""
        self._came = anyio.Event()

    @property
    def has_limits(self) -> bool:
        """Whether there is anything to judge."""
        return bool(self._limits.rules)

    @property
    def is_tripped(self) -> bool:
        """Whether the breaker is tripped, as far as this gateway knows."""
        return self._standing().tripped

    def look(self) -> None:
        """Judge the limits, after a change or some time."""
        for crossing in self._limits.check(self._engine, self._clock.utc_ns()):
            self.crossings += 1
            _log.warning(
                "limit_crossed",
                rule=crossing.rule,
                symbol=crossing.symbol,
                value=str(crossing.value),
            )
            if self._crossing is None and not self._known.tripped:
                self._crossing = crossing
            self._came.set()

    def blind(self) -> list[str]:
        """Why limits cannot be judged at the last prices; empty if all can be."""
        self.look()
        return self._limits.blind()

    def used(self) -> dict[str, Decimal | None]:
        """The largest fraction that is used of each limit, by its text; None if none is known."""
        self.look()
        found: dict[str, Decimal | None] = {}
        for state in self._limits.states(self._engine, self._clock.utc_ns()):
            known = [x for x in (found.get(state.rule), state.used) if x is not None]
            found[state.rule] = max(known, default=None)
        return found

    async def breaker(self) -> Breaker:
        """The breaker now.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: Redis cannot be asked.
        """
        self.look()
        self._learn(await self._redis.breaker())
        crossing = self._next_crossing()
        return self._known if self._known.tripped or crossing is None else tripped_by(crossing)

    async def encode(self, breaker: Breaker, blind: list[str]) -> bytes:
        """The breaker, the limits now, and why they cannot be judged; see :func:`encode_risk`.

        With ``on_trip``, the actions and their outcome, where there are some.
        """
        states = self._limits.states(self._engine, self._clock.utc_ns())
        body = encode_risk(breaker, states, blind)
        if self.on_trip is None:
            return body
        return b'%b,"on_trip":%b}' % (body[:-1], await self.on_trip.report())

    def has_price(self, symbol: str) -> bool:
        """Whether the price of a symbol can be used, or need not be."""
        return not self.has_limits or has_price(self._engine.at(symbol, self._clock.utc_ns()))

    def objections(self, order: Order, breaker: Breaker) -> list[str]:
        """Why an order is not allowed; empty if it is."""
        self.look()
        return self._limits.objections(order, breaker, self._engine, self._clock.utc_ns())

    async def reset(self, problems: Sequence[str]) -> Breaker:
        """Close the breaker; return it.

        Args:
            problems: Why positions or prices are not known; empty if they are.

        Raises:
            StillHolds: A limit is still crossed, or the one that has tripped cannot be judged.
            StoreUnavailable, StoreRefused, ConfigurationError: Redis cannot be asked.
        """
        breaker = await self.breaker()
        self._refuse_while_it_holds(breaker, problems)

        def close(found: Breaker | None) -> Breaker | None:
            # Another gateway may have tripped it by another limit meanwhile.
            mine = found is None or not found.tripped or found == breaker
            return reset_at(self._clock.utc_ns(), breaker, found or CLOSED) if mine else None

        if not breaker.tripped:
            return breaker
        self._crossing = None
        standing, changed = await self._redis.change_breaker(close)
        self._known = standing or CLOSED
        if changed:
            self._report(self._known)
        if self._known.tripped:
            raise StillHolds(f"the breaker tripped again: {self._known.rule}")
        return self._known

    def _next_crossing(self) -> Alert | None:
        """The crossing to trip by: one that Redis does not know yet, or one that holds."""
        held = self._limits.crossed()
        return self._crossing or (held[0] if held else None)

    def _refuse_while_it_holds(self, breaker: Breaker, problems: Sequence[str]) -> None:
        held = self._limits.crossed()
        if held:
            raise StillHolds(
                f"{held[0].rule} still holds for {held[0].symbol}; reset the breaker when it does "
                "not"
            )
        rule, subject = breaker.rule, breaker.subject
        if not breaker.tripped or rule is None or subject is None or not self._limits.has(rule):
            return
        if problems or not self._limits.is_judged(subject):
            why = f": {problems[0]}" if problems else ""
            raise StillHolds(f"{rule} cannot be judged for {subject}, so it may still hold{why}")

    async def run(self) -> None:
        """Keep the breaker in Redis until cancelled."""
        backoff = Backoff(_FIRST_S, _LIMIT_S)
        failed = False
        while True:
            try:
                await self._keep()
            except MDServiceError as exc:
                if not failed:
                    _log.warning("breaker_not_reached", reason=masked(str(exc)))
                failed = True
                # Whether a breaker that was never read is closed is not known.
                if self.on_trip is not None and self._crossing is not None and self._is_known:
                    self.on_trip.begin(self._standing(), self._crossing, in_redis=False)
                await anyio.sleep(backoff.next_s())
                continue
            if failed:
                _log.info("breaker_is_back")
            failed = False
            backoff.reset()
            with anyio.move_on_after(_LOOK_S):
                await self._came.wait()
            self._came = anyio.Event()

    async def act(self) -> None:
        """Execute the actions of trips until cancelled."""
        if self.on_trip is not None:
            await self.on_trip.run(self._standing)

    def _standing(self) -> Breaker:
        """The breaker as it is known here, with a crossing that is not in Redis yet."""
        crossing = self._crossing
        return self._known if self._known.tripped or crossing is None else tripped_by(crossing)

    async def _keep(self) -> None:
        """Trip the breaker if a limit holds; write it again if Redis has lost it."""
        if not self.has_limits:
            return
        crossing, known = self._next_crossing(), self._known

        def decide(found: Breaker | None) -> Breaker | None:
            if has_lost(found, known):
                return known
            tripped = found is not None and found.tripped
            return None if tripped or crossing is None else tripped_by(crossing, found or CLOSED)

        if crossing is None and not known.tripped:
            self._learn(await self._redis.breaker())
            return
        standing, changed = await self._change(decide, crossing)
        if self._crossing is crossing:
            self._crossing = None
        self._learn(standing)
        if changed and standing is not None and standing != known:
            if self.on_trip is not None and crossing is not None:
                self.on_trip.begin(standing, crossing, in_redis=True)
            self._report(standing)

    async def _change(
        self, decide: Callable[[Breaker | None], Breaker | None], crossing: Alert | None
    ) -> tuple[Breaker | None, bool]:
        on_trip, known = self.on_trip, self._known
        if on_trip is None or crossing is None:
            return await self._redis.change_breaker(decide)

        def actions(trip: Breaker) -> bytes | None:
            return None if trip == known else on_trip.of_trip(trip, crossing)

        try:
            return await self._redis.change_breaker(decide, actions)
        except StoreRefused as exc:
            # The breaker matters more: the user may lack the right for the key of the actions.
            _log.error("on_trip_not_saved", reason=masked(str(exc)))
            return await self._redis.change_breaker(decide)

    def _learn(self, found: Breaker | None) -> None:
        """Note what is in Redis, unless it has lost a trip."""
        self._is_known = True
        if has_lost(found, self._known):
            return
        self._known = found or CLOSED
        if self._known.tripped:
            self._crossing = None

    def _report(self, breaker: Breaker) -> None:
        """Count and log a change that this gateway has made, and send it to the webhook."""
        self.trips += breaker.tripped
        self.resets += not breaker.tripped
        if breaker.tripped:
            _log.error("breaker_tripped", rule=breaker.rule, symbol=breaker.subject)
        else:
            _log.warning("breaker_reset")
        if self._webhook is not None:
            self._webhook.send(encode_breaker(breaker), _text(breaker))


def _text(breaker: Breaker) -> str:
    if not breaker.tripped:
        return "mdservice: the breaker is closed"
    value = "unknown" if breaker.value is None else short(breaker.value)
    return f"mdservice: the breaker tripped: {breaker.rule}; {breaker.subject} is at {value}"


def make_limits(limits: Iterable[str], alerts: Iterable[str]) -> Limits:
    """The judge of the limits, and of the alert rules that say ``trip``.

    Raises:
        ConfigurationError: A rule is invalid.
    """
    try:
        rules = [parse_rule(rule, "limit") for rule in limits]
        rules += [parsed for rule in alerts if (parsed := parse_rule(rule)).trip]
    except ValueError as exc:
        raise ConfigurationError(f"limits: {exc}") from exc
    return Limits(rules)
