"""What a seed stands for, and what came of it."""

from __future__ import annotations

import random
from collections import Counter

import attrs

from mdservice.simulator import SimulatorConfig
from tests.simulation.market import Pace
from tests.simulation.positions import FAULTS, OLDER

PRICE_TTL_S = 8
"""Short, so that keys run out within a run unless the service renews them."""
STATIC = ("AAPL", "MSFT", "SPY")
_WITH_POSITIONS = 0.3
_LATER = ("rest_refuse_symbol",)
"""Drawn apart too."""
DYNAMIC = ("TSLA", "NVDA", "F", "KO")


@attrs.frozen
class Plan:
    """What a seed stands for."""

    seed: int
    faults: tuple[str, ...]
    fault_pause_s: float
    faults_for_s: float
    pace: Pace
    backlog: int
    mute_after_s: float
    config: SimulatorConfig
    positions: bool = False
    """Whether positions are followed."""

    @classmethod
    def draw(cls, seed: int, only: tuple[str, ...] = ()) -> Plan:
        """The seed's plan; ``only`` these kinds of fault, by the beginning of their names."""
        rng = random.Random(f"{seed}/plan")
        share = rng.choice((0.15, 0.3, 1.0))
        names = tuple(name for name in OLDER if name not in _LATER and rng.random() < share)
        later = random.Random(f"{seed}/later faults")
        names += tuple(name for name in _LATER if later.random() < share)
        # Drawn apart, so that what seeds without positions stand for stays what it was.
        positions = random.Random(f"{seed}/with positions").random() < _WITH_POSITIONS
        if positions:
            names += tuple(name for name in FAULTS if name not in OLDER)
        if only:
            names = tuple(name for name in FAULTS if name.startswith(only))
            positions = any(name not in OLDER for name in names)
        return cls(
            seed=seed,
            faults=names,
            positions=positions,
            fault_pause_s=rng.choice((2.0, 6.0, 15.0)),
            faults_for_s=rng.uniform(20, 120),
            pace=Pace(
                pause_s=rng.choice((0.1, 0.3, 1.0)),
                burst=rng.choice((5, 50, 400)),
                quiet_s=rng.choice((0.0, 0.0, 45.0, 100.0)),
            ),
            backlog=rng.choice((50, 500, 10_000)),
            mute_after_s=rng.choice((10.0, 30.0)),
            config=SimulatorConfig(
                seed=seed,
                rate=0,
                slot_hold_s=rng.choice((0.0, 0.0, 0.0, 20.0)),
                rest_page_size=rng.choice((7, 100, 10_000)),
                rest_rate_limit=rng.choice((None, 200, 200, 10)),
                rest_lag_s=rng.choice((0.0, 0.5, 0.8, 4.0)),
                send_buffer_bytes=rng.choice((20_000, 4_000_000)),
            ),
        )


@attrs.define
class Outcome:
    """What came of one seed."""

    seed: int
    violations: list[str] = attrs.field(factory=list)
    simulated_s: float = 0.0
    faults: Counter[str] = attrs.field(factory=Counter)
    calls: int = 0
    quotes: int = 0
    published: int = 0
    lives: int = 0
    trace: str = ""
