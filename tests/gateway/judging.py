"""Gateways that judge limits, without HTTP and with keys in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio

from mdservice.errors import StoreUnavailable
from mdservice.gateway.on_trip import OnTrip
from mdservice.gateway.risk import Risk, make_limits
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.breaker import Breaker
from mdservice.pnl.engine import PnlEngine
from mdservice.testing import VirtualClock

HOLD_S = 3.0


class FakeKeys:
    """The keys of the breaker and of its actions, for several gateways."""

    def __init__(self) -> None:
        self.value: Breaker | None = None
        self.changes: list[str] = []
        self.actions_value: bytes | None = None
        self.holder: tuple[object, float] = (None, 0.0)
        self.away = False

    async def breaker(self) -> Breaker | None:
        await anyio.sleep(0.001)
        if self.away:
            raise StoreUnavailable("Redis is away")
        return self.value

    def of(self, gateway: object) -> GatewaysKeys:
        return GatewaysKeys(self, gateway)


class GatewaysKeys:
    """The keys as one gateway sees them."""

    def __init__(self, keys: FakeKeys, gateway: object) -> None:
        self._keys = keys
        self._gateway = gateway

    async def breaker(self) -> Breaker | None:
        return await self._keys.breaker()

    async def change_breaker(
        self, decide: Any, actions: Any = lambda _: None
    ) -> tuple[Breaker | None, bool]:
        keys = self._keys
        await keys.breaker()
        wanted = decide(keys.value)
        if wanted is None:
            return keys.value, False
        keys.value = wanted
        keys.changes.append(wanted.state)
        if (content := actions(wanted)) is not None:
            keys.actions_value = content
            keys.holder = self._gateway, anyio.current_time() + HOLD_S
        return wanted, True

    async def actions(self) -> bytes | None:
        await self.breaker()
        return self._keys.actions_value

    async def change_actions(self, decide: Any) -> None:
        await self.breaker()
        self._keys.actions_value = decide(self._keys.actions_value) or self._keys.actions_value

    async def hold_actions(self) -> bool:
        await self.breaker()
        holder, until_s = self._keys.holder
        now_s = anyio.current_time()
        if holder is not self._gateway and now_s < until_s:
            return False
        self._keys.holder = self._gateway, now_s + HOLD_S
        return True


class FakeWebhook:
    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, _content: bytes, text: str, *, urgent: bool = True) -> None:
        self.sent.append(text)


class Gateway:
    """One gateway's judge, with one position in A, bought at 100.

    Args:
        keys: Those in Redis.
        limits: Its limits.
        account: Where it acts after a trip, or None.
        named: What it does there.
    """

    def __init__(
        self,
        keys: FakeKeys,
        *limits: str,
        account: Any = None,
        named: Sequence[Any] = ("suspend_trade", "cancel_orders"),
    ) -> None:
        self.clock = VirtualClock()
        calls: Any = keys.of(self)
        self.engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
        self.engine.set_positions([Position("A", Decimal(1), Decimal(100))])
        self.webhook: Any = FakeWebhook()
        on_trip = None
        if account is not None:
            on_trip = OnTrip(named, account, calls, self.clock, self.webhook)
        self.risk = Risk(
            make_limits(limits, ()), self.engine, calls, self.clock, self.webhook, on_trip=on_trip
        )

    def price(self, price: float) -> None:
        now_ns = self.clock.utc_ns()
        self.engine.update(Quote("A", price, price, 1, 1, now_ns, now_ns), now_ns)
        self.risk.look()

    async def state(self) -> str:
        return (await self.risk.breaker()).state


@asynccontextmanager
async def running(*gateways: Gateway) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for gateway in gateways:
            tasks.start_soon(gateway.risk.run)
            tasks.start_soon(gateway.risk.act)
        yield
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(100):
        while not condition():
            await anyio.sleep(0.01)
