"""The breaker and the limits in a program that only shows them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final, TypeVar

import anyio
import attrs
import msgspec

from mdservice.clock import Clock
from mdservice.errors import MDServiceError, StoreUnavailable
from mdservice.gateway.risk import make_limits
from mdservice.gateway.risk_routes import RISK_PATH, Verdict
from mdservice.gateway.tracker import PnlTracker
from mdservice.observability.logging import masked
from mdservice.pnl.breaker import CLOSED, Breaker
from mdservice.pnl.limits import LimitState, encode_risk
from mdservice.runtime.network import HttpClient, HttpFailed
from mdservice.settings import Settings

__all__ = ["RiskObserver", "SeenRisk", "ask_gateway"]

_EVERY_S: Final = 1.0
_GATEWAY_TIMEOUT_S: Final = 1.0
_MOST_BYTES: Final = 16 * 2**20
_S_NS: Final = 1_000_000_000
_T = TypeVar("_T")


async def ask_gateway(
    http: HttpClient, settings: Settings, path: str, type_: type[_T]
) -> _T | None:
    """The answer of the gateway of the settings; None if it has none that can be read.

    Args:
        http: What to ask with.
        settings: The gateway's address and token.
        path: What to ask for.
        type_: What the JSON of the answer is decoded as.
    """
    token = settings.api_token
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    url = f"http://{settings.gateway_http}{path}"
    try:
        answer = await http.get(
            url, headers=headers, timeout_s=_GATEWAY_TIMEOUT_S, most_bytes=_MOST_BYTES
        )
        return msgspec.json.decode(answer.body, type=type_)
    except (HttpFailed, ValueError, RecursionError):
        return None


@attrs.frozen
class SeenRisk:
    """The circuit breaker and the limits, as another program sees them.

    Attributes:
        breaker: None if it is not known.
        limits: Every limit, those used most first.
        blind: Why limits cannot be judged.
        judge: Who judges them, where that is another program.
    """

    breaker: Breaker | None
    limits: tuple[LimitState, ...] = ()
    blind: tuple[str, ...] = ()
    judge: str | None = None


class RiskObserver:
    """The breaker in Redis, and the limits.

    The limits of the settings are judged here, which never trips the breaker. Without any, those of
    the gateway at the settings' address are shown, if it answers and has the same breaker.

    Args:
        tracker: Positions and prices; must be running.
        settings: The limits, the gateway and its token.
        clock: The time.
        http: What to ask the gateway with; closed by its owner.

    Attributes:
        breaker: As it was last read; None while it is not known.
    """

    def __init__(
        self, tracker: PnlTracker, settings: Settings, clock: Clock, http: HttpClient
    ) -> None:
        self._tracker = tracker
        self._clock = clock
        self._limits = make_limits(settings.limits, settings.alerts)
        self._settings = settings
        self._http = http
        self.breaker: Breaker | None = None
        self._failure = ""
        self._asked_s: float | None = None
        self._theirs: Verdict | None = None
        self._shown: SeenRisk | None = None
        self._until_ns = 0

    async def poll(self) -> None:
        """Ask Redis, and the gateway, again and again until cancelled."""
        while True:
            await self.refresh()
            await anyio.sleep(_EVERY_S)

    async def refresh(self) -> None:
        """Ask once."""
        try:
            self.breaker = await self._tracker.risk.breaker()
        except MDServiceError as exc:
            self.breaker, self._failure = None, masked(str(exc))
        self._theirs = None if self._limits.rules else await self._ask()
        self._until_ns = 0

    def now(self, now_ns: int) -> SeenRisk | None:
        """What is to be shown; None if there are no limits, and the breaker has never tripped."""
        if self._limits.rules and not self._until_ns - _S_NS <= now_ns < self._until_ns:
            engine = self._tracker.engine
            self._limits.check(engine, now_ns)
            states = self._limits.states(engine, now_ns)
            self._shown = SeenRisk(self.breaker, _most_used(states), tuple(self._limits.blind()))
            self._until_ns = now_ns + _S_NS
        elif not self._limits.rules and self._theirs is not None:
            limits, blind = _most_used(self._theirs.limits), tuple(self._theirs.blind)
            judge = f"the gateway at {self._settings.gateway_http}"
            self._shown = SeenRisk(self.breaker, limits, blind, judge)
        elif not self._limits.rules:
            never = self.breaker is None or self.breaker == CLOSED
            self._shown = None if never else SeenRisk(self.breaker)
        return self._shown

    async def encode(self) -> bytes | None:
        """What is to be shown, in the form of :func:`mdservice.pnl.limits.encode_risk`, or None.

        Redis and the gateway are asked once a second at most.

        Raises:
            StoreUnavailable: The breaker is not known.
        """
        now_s = self._clock.monotonic()
        if self._asked_s is None or now_s - self._asked_s >= _EVERY_S:
            self._asked_s = now_s
            await self.refresh()
        seen = self.now(self._clock.utc_ns())
        if seen is None:
            return None
        if seen.breaker is None:
            raise StoreUnavailable(self._failure)
        return encode_risk(seen.breaker, seen.limits, seen.blind)

    async def _ask(self) -> Verdict | None:
        """What the gateway judges; None without limits, or if it is one of another Redis."""
        found = await ask_gateway(self._http, self._settings, RISK_PATH, Verdict)
        usable = found is not None and found.limits and found.breaker == self.breaker
        return found if usable else None


def _most_used(states: Sequence[LimitState]) -> tuple[LimitState, ...]:
    """Those that cannot be judged first, then the most used."""
    one = Decimal(1)
    return tuple(sorted(states, key=lambda s: (s.used is not None, -(s.used or one))))
