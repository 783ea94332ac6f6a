"""Programs that ask the service's HTTP application, and people who change the symbols."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mdservice.errors import SubscriptionRefused
from mdservice.http_api.server import create_app
from tests.simulation.answers import CHECKS
from tests.simulation.asgi import Answer, call
from tests.simulation.names import DYNAMIC

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import World

_PAUSE_S = 12.0
_PATIENCE_S = 30.0
"""Longer than any request may take: the feed's answers have a limit of a few seconds each."""
_BASE = "/api/v1/market-data"
_OK, _REFUSED, _STOPPING = 200, 409, 503


class Clients:
    """What they ask is drawn from the seed, and what they are told is compared with the truth."""

    def __init__(self, world: World) -> None:
        self.calls = 0
        self._world = world
        self._rng = random.Random(f"{world.plan.seed}/clients")
        self._app: Any = None
        self._app_of: Life | None = None

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await anyio.sleep(self._rng.expovariate(1 / _PAUSE_S))
            life = self._world.life
            if life is not None and life.service is not None:
                await self._ask_something(life)

    async def _ask_something(self, life: Life) -> None:
        question = self._rng.choice(CHECKS)(self._rng)
        expected = list(question.answers(self._world, life))
        answer = await self._call(life, question.method, question.path, **question.query)
        if answer is None or life.service is None:
            return
        expected += question.answers(self._world, life)
        told = question.read(answer)
        if told not in expected:
            self._world.violated(f"{question.path} answered {told}, not {expected[-1]}")
        for untruth in question.untruths(self._world, life, answer):
            self._world.violated(f"{question.path} answered {answer}: {untruth}")

    async def _call(
        self, life: Life, method: str, path: str, body: bytes = b"", **query: str
    ) -> Answer | None:
        """The answer; None where the service stopped meanwhile."""
        if self._app_of is not life:
            self._app, self._app_of = create_app(life.service), life
        self.calls += 1
        asked_s = anyio.current_time()
        stopping = life.drain_began_s is not None
        try:
            with anyio.move_on_after(_PATIENCE_S):
                return await call(self._app, method, path, body, **query)
        except Exception as exc:
            if life.drain_began_s is None and life.service is not None:
                self._world.violated(f"{method} {path} failed: {exc!r}")
            return None
        waited_s = anyio.current_time() - asked_s
        self._world.violated(f"{method} {path} is not answered ({waited_s:g} s, {stopping=})")
        return None

    # Symbols

    async def change_subscriptions(self) -> str | None:
        """Somebody follows or no longer follows some symbols."""
        life = self._world.life
        if life is None or life.service is None:
            return None
        symbols = self._rng.sample(DYNAMIC, self._rng.randrange(1, 3))
        if any(life.changing[symbol] > 0 for symbol in symbols):
            return None  # of two who change one at once, nobody can say who was last
        adding = self._rng.random() < 0.5
        change = self._over_http if self._rng.random() < 0.5 else self._in_process
        if not adding:
            for symbol in symbols:
                life.unwant(symbol)
        life.changing.update(symbols)
        # Who is cancelled never learns what came of it: it stays uncertain.
        outcome = await change(life, symbols, adding=adding)
        life.changing.subtract(symbols)
        if adding and outcome in ("subscribed", "pending"):
            for symbol in symbols:
                life.want(symbol)
        return f"{symbols} {outcome}"

    async def subscribe(self, life: Life, symbol: str) -> str:
        """Somebody follows this symbol; what came of it."""
        life.changing.update([symbol])
        outcome = await self._in_process(life, [symbol], adding=True)
        life.changing.subtract([symbol])
        if outcome in ("subscribed", "pending"):
            life.want(symbol)
        return outcome

    async def _in_process(self, life: Life, symbols: list[str], *, adding: bool) -> str:
        service = life.service
        assert service is not None
        try:
            change = service.subscribe if adding else service.unsubscribe
            return (await change(*symbols)).status
        except SubscriptionRefused as exc:
            return f"refused: {exc}"
        except Exception as exc:
            if life.drain_began_s is None:
                raise
            return f"while it stops: {exc!r}"

    async def _over_http(self, life: Life, symbols: list[str], *, adding: bool) -> str:
        path = f"{_BASE}/{'subscribe' if adding else 'unsubscribe'}"
        body, query = b"", {}
        if len(symbols) == 1 and self._rng.random() < 0.5:
            query = {"symbol": symbols[0].lower()}
        else:
            body = msgspec.json.encode({"symbols": symbols})
        answer = await self._call(life, "POST", path, body, **query)
        if answer is None:
            return "while it stops"
        for wrong in _wrong_in_change(life, answer, symbols, adding=adding):
            self._world.violated(f"POST {path} {symbols} answered {answer}: {wrong}")
        return answer.json["status"] if answer.status == _OK else f"HTTP {answer.status}"


def _wrong_in_change(
    life: Life, answer: Answer, symbols: list[str], *, adding: bool
) -> Iterator[str]:
    told = answer.json
    if answer.status == _OK:
        done = "subscribed" if adding else "unsubscribed"
        if told.get("status") not in (done, "pending"):
            yield f"neither {done} nor pending"
        if told.get("symbols") != symbols or told.get("symbol", symbols[0]) != symbols[0]:
            yield "other symbols than asked for"
        if ("symbol" in told) != (len(symbols) == 1):
            yield "symbol is for one alone"
    elif answer.status == _STOPPING:
        if life.drain_began_s is None:
            yield "it is not stopping"
    elif answer.status != _REFUSED or not told.get("detail") or not adding:
        yield "neither done nor refused with a reason"
