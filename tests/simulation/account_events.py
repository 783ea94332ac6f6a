"""The account's events in the simulation: the service publishes each one once, and in order.

What the trading stream brought to each run of the service is kept as it came, and read slowly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec

from mdservice.model.symbol import without_slash
from mdservice.model.timestamps import parse_rfc3339
from mdservice.positions.sources import AlpacaPositions
from mdservice.positions.trading_stream import TradingLink, TradingStream
from mdservice.redis_io.names import ACCOUNT_CHANNEL
from mdservice.runtime.network import HttpClient
from mdservice.simulator.transport import SimulatorTransport
from tests.simulation.clocks import SimulatedClock

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import World

__all__ = ["AccountEvents"]

_FUTURE_NS: Final = 60 * 10**9
"""An event further ahead of the service's clock is not used."""
_PROMPT_NS: Final = 1_000_000
_NUMBERS: Final = ("qty", "price", "position_qty")
_ZERO: Final = Decimal(0)

Fields = Mapping[str, Any]


@attrs.frozen
class Came:
    """A message of the trading stream, and when it came by the market's clock."""

    data: bytes
    at_ns: int
    usable: bool


class AccountEvents:
    """The trading stream of each run of the service, and the check of what it published."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._came: dict[int, list[Came]] = defaultdict(list)
        self.published = 0
        """Events that were checked."""

    def of_life(
        self, life: Life
    ) -> tuple[AlpacaPositions, TradingStream, Callable[[], Awaitable[None]]]:
        """The source of positions and the stream of one run, and what closes them."""
        world = self._world
        http = HttpClient(transport=_OwnKey(world.sim))
        source = AlpacaPositions(world.sim.rest_url, "key", "secret", http)
        stream = _NotedStream(
            world.sim.stream_url("trading"), "key", "secret", open_stream=world._dial
        )
        stream.world, stream.came = world, self._came[life.number]
        return source, stream, http.aclose

    def check_life(self, life: Life) -> Iterator[str]:
        """What came was published once and in order, each with a position that the account had."""
        came = [
            (one, fields)
            for one in self._came[life.number]
            if one.usable
            for fields in _fields_of(one.data)
        ]
        payloads = [
            message.payload
            for batch in life.batches()
            for message in batch.messages
            if message.channel == ACCOUNT_CHANNEL
        ]
        self.published += len(payloads)
        told = [_told(payload) for payload in payloads]
        for (_, expected), (fields, _) in zip(came, told, strict=False):
            if fields != expected:
                yield f"account.updated has {fields} in the place of {expected}"
                return
        if len(told) > len(came):
            yield f"account.updated has {len(told) - len(came)} events that never came"
        ended_s = life.drain_began_s or life.closed_s
        over_ns = self._world.market_clock.utc_ns()
        over_ns -= round((self._world.market_clock.monotonic() - ended_s) * 1e9)
        missing = [fields for one, fields in came[len(told) :] if one.at_ns < over_ns]
        if life.drained and missing:
            yield f"account.updated lacks {len(missing)} events, the first one {missing[0]}"
        yield from self._check_positions(came, told)

    def _check_positions(
        self, came: list[tuple[Came, Fields]], told: list[tuple[Fields, Fields | None]]
    ) -> Iterator[str]:
        """No quantity is one that the account never had, or goes back to an earlier one."""
        gateway, skewed = self._world.gateway, bool(self._world.skews)
        assert gateway is not None
        reached: dict[str, int] = {}
        newest: dict[str, int] = {}
        known = False
        for (one, _), (fields, position) in zip(came, told, strict=False):
            symbol = fields["symbol"]
            known = known or position is not None
            if not known:
                continue  # the positions have not answered yet
            qty = _ZERO if position is None else Decimal(str(position["qty"]))
            past = gateway.past(symbol)
            since = reached.get(symbol, 0)
            if position is not None and position["symbol"] != without_slash(symbol):
                yield f"{position} is the position of {symbol}"
            if qty not in past[since:]:
                yield f"account.updated has {qty} of {symbol} after {past[since]}: {fields}"
                return
            reached[symbol] = past.index(qty, since)
            is_newest = one.at_ns > newest.get(symbol, 0)
            at_ns = parse_rfc3339(fields["timestamp"])
            prompt = one.at_ns - at_ns < _PROMPT_NS and is_newest and not skewed
            newest[symbol] = max(newest.get(symbol, 0), at_ns)
            if prompt and fields["position_qty"] not in {None, float(qty)}:
                yield f"account.updated has {qty} of {symbol} with {fields}"


class _OwnKey(SimulatorTransport):
    """Calls of the trading API do not count as the service's of data."""

    async def handle_async_request(self, request: Any) -> Any:
        request.headers["APCA-API-KEY-ID"] = f"account {id(request)}"
        return await super().handle_async_request(request)


class _NotedStream(TradingStream):
    """Notes what comes, as it comes."""

    world: World
    came: list[Came]

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[TradingLink]:
        async with super().connect() as link:
            receive = link.receive

            async def noted() -> Any:
                message = await receive()
                if message.stream == "trade_updates":
                    self._note(bytes(message.data))
                return message

            link.receive = noted  # type: ignore[method-assign] - listens in
            yield link

    def _note(self, data: bytes) -> None:
        clock: SimulatedClock = self.world.market_clock
        latest_ns = self.world.service_clock.utc_ns() + _FUTURE_NS
        at_ns = parse_rfc3339(msgspec.json.decode(data)["timestamp"])
        self.came.append(Came(data, clock.utc_ns(), usable=at_ns <= latest_ns))


def _fields_of(data: bytes) -> Iterator[Fields]:
    """What is to be told of a message; of one with legs once for each leg."""
    event = msgspec.json.decode(data)
    order = event["order"]
    common = {"event": event["event"], "timestamp": event["timestamp"]}
    common["execution_id"] = event["execution_id"]
    parts = [order] if order["symbol"] else order["legs"]
    filled = {leg["symbol"]: leg for leg in event.get("legs") or ()}
    for part in parts:
        symbol = part["symbol"]
        values = {**event, **filled.get(symbol, {})}
        yield {
            **common,
            "symbol": symbol,
            "order_id": part["id"],
            "side": part["side"],
            **{name: _number(values.get(name)) for name in _NUMBERS},
        }


def _told(payload: bytes) -> tuple[Fields, Fields | None]:
    """An event as it was published, and its position."""
    fields = msgspec.json.decode(payload)
    position = fields.pop("position")
    return fields | {name: _number(fields[name]) for name in _NUMBERS}, position


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
