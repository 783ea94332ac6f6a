"""Positions in the simulation: opened, closed, turned, by a source that fails now and then."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.tracker import SOURCE
from mdservice.testing import FakePositions
from tests.simulation.outages import FAULTS, fault
from tests.topics import names

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["FAULTS", "HELD", "OLDER", "SimulatedPositions"]

OLDER = tuple(FAULTS)
"""The kinds of fault that there were before there were positions."""

HELD = ("QQQ", "DIS", "BA", "TSLA")
"""Of which positions may be held; the API asks for the last of them too."""


class SimulatedPositions:
    """A source that a fault changes, and what has to be true of it at the end."""

    def __init__(self, seed: int) -> None:
        self.source = FakePositions()
        self._rng = random.Random(f"{seed}/positions")
        self.change()

    def change(self) -> str:
        """Hold other positions."""
        symbols = self._rng.sample(HELD, self._rng.randrange(len(HELD) + 1))
        lots = [symbol for symbol in symbols for _ in range(self._rng.choice((1, 1, 1, 2)))]
        self.source.set(
            *(
                Position(symbol, Decimal(self._rng.randrange(-90, 90)), Decimal("12.50"))
                for symbol in lots
            ),
            Position("?!", None, None, problem="has no valid symbol"),
        )
        return ", ".join(f"{p.symbol} {p.qty}" for p in self.source.positions)

    def fix(self) -> None:
        """The source works again."""
        self.source.resume()
        self.source.script.clear()
        self.source.always = None
        self.source.delay_s = 0.0

    def check_at_end(self, world: World) -> None:
        """The source has answered for long enough that closed symbols have been let go."""
        life = world.life
        assert life is not None
        assert life.service is not None
        service = life.service
        held = {p.symbol for p in self.source.positions if p.problem is None and p.qty}
        followed = {s for s, sources in service.subscriptions().items() if SOURCE in sources}
        topology = service._topology
        assert topology.tracker is not None
        let_go = followed - topology.tracker._held._closed.keys()
        if not let_go <= held <= followed:
            world.violated(f"{sorted(followed)} are followed, {sorted(held)} are held")
        session = topology.feed._session
        if session is not None and topology.feed.snapshot().subscribed:
            given = names(session.acknowledged) | names(session.left_out)
            missing = set(service.subscriptions()) - given
            if missing:
                world.violated(f"{sorted(missing)} are wanted and not subscribed at the end")
        report = service.status().positions
        if (
            report is None
            or report.state != "ok"
            or report.problems != {"?!": "has no valid symbol"}
        ):
            world.violated(f"the positions are told as {report}")


@fault
async def positions_change(world: World) -> str | None:
    return world.positions.change() if world.positions is not None else None


@fault
async def positions_fail(world: World) -> str | None:
    if world.positions is None:
        return None
    source = world.positions.source
    source.always = world.rng.choice((PositionsUnavailable("away"), PositionsRefused("no")))
    world.later(world.rng.uniform(1, 40), world.positions.fix)
    return str(source.always)


@fault
async def positions_stall(world: World) -> str | None:
    if world.positions is None:
        return None
    world.positions.source.stall()
    world.later(world.rng.uniform(1, 40), world.positions.fix)
    return "no answer"


@fault
async def positions_restart(world: World) -> str | None:
    now_s = anyio.current_time()
    if world.positions is None or world.life is None or world.life.service is None:
        return None
    if now_s < world.no_restart_before_s:
        return None
    world.no_restart_before_s = now_s + 15
    world.life.service._topology.supervisor.restart("position_tracker", "simulated")
    return "the tracker"
