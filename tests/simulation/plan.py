"""What a seed stands for, and what came of it."""

from __future__ import annotations

import random
from collections import Counter
from decimal import Decimal
from typing import Literal

import attrs

from mdservice.simulator import SimulatorConfig
from tests.simulation.account import OPTIONS_HELD, PAIRS_HELD, Rates
from tests.simulation.group_faults import GROUP_FAULTS
from tests.simulation.hours import TURNS, Turn
from tests.simulation.market import Pace
from tests.simulation.names import STATIC
from tests.simulation.positions import FAULTS, OLDER

PRICE_TTL_S = 8
"""Short, so that keys run out within a run unless the service renews them."""
_WITH_POSITIONS = 0.3
_WHOLE_ACCOUNT = 0.25
_OF_SERVICE = 0.5
_GROUPS = 0.2
_OF_GROUP = ("member", "way", "redis")
"""Faults of these seams are in more plans of a group than others."""
_LAST = 0.3
_ARTICLES_BYTES = 250_000
"""Room for two large articles that come at once: their client is not slow."""
_LATER = ("rest_refuse_symbol",)
"""Drawn apart too."""


@attrs.frozen
class Trading:
    """How an account trades, and how its gateway prices what it holds.

    Attributes:
        pause_s: Mean time between two orders.
        mark: The price: the mid, the side at which a position can be closed, or the last trade.
        sale_fee: The fee of each sale, as a part of its value.
        max_spread: The widest usable spread, in per cent of the mid; 0 for any.
        turn: What New York's time brings: the market's close or open, another date, or nothing.
        turns_at_s: When.
        of_service: Whether the service follows the account too, and publishes its events.
        has_options: Whether options are ordered in pairs, and end: by their expiry, an exercise or
            an assignment.
    """

    pause_s: float
    mark: Literal["mid", "exit", "last"]
    sale_fee: Decimal
    max_spread: float = 10.0
    turn: Turn | None = None
    turns_at_s: float = 0.0
    has_options: bool = False
    of_service: bool = False


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
    trading: Trading | None = None
    """How the account trades that a gateway follows; None without a gateway."""
    account: Rates | None = None
    """How lively the other streams are, where every stream of the account is followed."""
    members: int = 0
    """How many services form a standby group; 0 for one service without a group."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of the settings."""
        return STATIC if self.account is None else (*STATIC, *PAIRS_HELD, *OPTIONS_HELD)

    @classmethod
    def draw(
        cls,
        seed: int,
        only: tuple[str, ...] = (),
        *,
        account: bool | None = None,
        gateway: bool = True,
        newer: bool = True,
        group: bool | None = False,
    ) -> Plan:
        """The seed's plan.

        Args:
            seed: Any.
            only: Only these kinds of fault, by the beginning of their names.
            account: Whether it is about every stream; None for a part of the seeds.
            gateway: Whether an account trades, and a gateway follows it.
            newer: Whether it has what gateways did not have at first. It is drawn apart.
            group: Whether it is about a standby group; None for a part of the seeds.
        """
        of_group = random.Random(f"{seed}/group")
        if group is None:
            group = account is None and of_group.random() < _GROUPS
        if group:
            return cls._draw_group(seed, only, of_group)
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
        drawn = random.Random(f"{seed}/whole account")  # apart, as above
        if (drawn.random() < _WHOLE_ACCOUNT) if account is None else account:
            plan = cls._draw_account(seed, names, rng, drawn)
        else:
            plan = cls._draw(seed, names, rng, positions=positions)
        return plan._with_gateway(newer=newer) if gateway else plan

    def _with_gateway(self, *, newer: bool) -> Plan:
        """The plan with an account that trades."""
        rng = random.Random(f"{self.seed}/trading")
        trading = Trading(
            pause_s=rng.choice((4.0, 10.0, 25.0)),
            mark=rng.choice(("mid", "mid", "exit")),
            sale_fee=rng.choice((Decimal(0), Decimal("0.0000278"))),
        )
        if newer:
            rng = random.Random(f"{self.seed}/newer trading")
            last = random.Random(f"{self.seed}/last").random() < _LAST and self.account is None
            trading = attrs.evolve(
                trading,
                mark="last" if last else trading.mark,
                turn=rng.choice((None, *TURNS)),
                turns_at_s=round(rng.uniform(0.1, 0.9) * self.faults_for_s, 3),
                max_spread=rng.choice((0.0, 0.02, 0.1, 10.0)),
                has_options=True,
                of_service=not self.positions
                and self.account is None
                and rng.random() < _OF_SERVICE,
            )
        config = attrs.evolve(self.config, sale_fee=trading.sale_fee)
        return attrs.evolve(self, trading=trading, config=config)

    @classmethod
    def _draw(
        cls, seed: int, names: tuple[str, ...], rng: random.Random, *, positions: bool
    ) -> Plan:
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

    @classmethod
    def _draw_account(
        cls, seed: int, names: tuple[str, ...], rng: random.Random, drawn: random.Random
    ) -> Plan:
        """A plan of every stream: there are more calls of REST, and fewer quotes of stocks."""
        older = tuple(name for name in names if name in OLDER)
        plan = cls._draw(seed, older, rng, positions=False)
        return attrs.evolve(
            plan,
            pace=attrs.evolve(plan.pace, pause_s=max(0.3, plan.pace.pause_s)),
            config=attrs.evolve(
                plan.config,
                rest_rate_limit=drawn.choice((None, None, 1_000)),
                rest_page_size=max(100, plan.config.rest_page_size),
                send_buffer_bytes=max(_ARTICLES_BYTES, plan.config.send_buffer_bytes),
            ),
            account=Rates(
                crypto=drawn.choice((0.5, 2.0, 8.0)),
                options=drawn.choice((0.2, 1.0, 4.0)),
                news_every_s=drawn.choice((2.0, 8.0, 30.0)),
                pause_s=drawn.choice((0.25, 0.5, 1.0)),
            ),
        )

    @classmethod
    def _draw_group(cls, seed: int, only: tuple[str, ...], rng: random.Random) -> Plan:
        """A plan of a standby group."""
        share = rng.choice((0.2, 0.4, 1.0))
        names = tuple(
            name
            for name in GROUP_FAULTS
            if rng.random() < (max(share, 0.5) if name.startswith(_OF_GROUP) else share / 2)
        )
        if only:
            names = tuple(name for name in GROUP_FAULTS if name.startswith(only))
        plan = cls._draw(seed, names, rng, positions=False)
        return attrs.evolve(
            plan,
            members=rng.choice((2, 2, 2, 3)),
            backlog=10_000,
            config=attrs.evolve(
                plan.config,
                slot_hold_s=rng.choice((0.0, 0.0, 5.0, 30.0)),
                rest_rate_limit=rng.choice((None, None, 200)),
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
