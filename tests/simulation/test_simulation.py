"""A few seeds of the simulation in every run; ``just simulate-faults`` runs thousands."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tests.simulation.group_faults import GROUP_FAULTS, GROUP_SEAMS
from tests.simulation.outages import SEAMS
from tests.simulation.plan import Plan
from tests.simulation.positions import FAULTS
from tests.simulation.scheduling import run_seeded, seeded_scheduling
from tests.simulation.world import simulate

# What a seed found once, and the kinds of fault that it takes; each failed before its fix.
FOUND = [
    # A repair took a past quote at its symbol's last time for the echo of itself, and lost it.
    (2, ("feed",)),
    (16, ("symbols_change",)),
    (14, ("login",)),
    # Followed, but first seen behind a repair that failed: the gap names it all the same.
    (12, ("rest_refuse", "rest_slow", "rest_cut", "rest_garble")),
    # Two quotes of one time, one of them on its way when the service was cancelled.
    (303, ()),
    # A server that restarts empty between a write and the question whether it was executed.
    (12, ("store_script", "store_slow", "store_down", "store_refuses", "store_restart")),
    # Left out on one reconnect, back on the next: what it missed between the two is a gap too.
    (51170, ()),
    (25, ("symbols_limit",)),
    # Left out when a repair was given up, whose waiting quotes went out: what came before them
    # was later said to be repaired.
    (99, ()),
    # A quiet market whose history lags, and REST cut at the second look; then a clock that is
    # behind, and a symbol without a quote before the loss.
    (161, ()),
    (50929, ()),
    (50886, ()),
    # Cancelled while the feed refused for good: the refusal was lost in a group of both.
    (50619, ()),
    # Asked for while the feed was away: history brought a part of what nobody had missed.
    (100011, ()),
    # A clock an hour behind: history was asked for too short a time, and believed.
    (201411, ()),
    # A stream that was held up brought what late history had brought already.
    (206985, ()),
    # A second look's quotes came in the next outage, whose gap then counted as one for good.
    (606368, ()),
    # Left out while live quotes of it waited behind a repair: they went out, the gap stays one.
    (1100316, ()),
    # History brought another quote of the time of REST's first price: it counted as the feed's.
    (1102258, ()),
    # A repair took one symbol's history further than a slow stream was, and another's was refused.
    (1103735, ()),
    # The stream's path answered 404 a few times: the waits then were as for a wrong URL.
    (1103495, ()),
    # A repair failed, a symbol then stayed quiet, and the next repair did not ask far enough back
    # for it, although it was said to cover the whole gap.
    (2001466, ()),
]

# The same, with every stream of an account.
FOUND_IN_ACCOUNTS = [
    5_000_110,  # The answer to unsubscribe left out a symbol that was not subscribed.
    5_000_229,  # After a refresh alone the next gap began at the loss, behind what was missing.
    5_000_004,  # The service ended during a refresh: the gap was never reported.
    5_000_242,  # Quotes and trades were due at every look: keys of other kinds ran out.
    5_000_612,  # A live trade that came late was taken as proof that history was up to date.
    5_000_763,  # The update of a bar that began before it was subscribed was missed.
    6_000_060,  # A late trade came first after a restart: the key keeps the one of before.
    6_000_300,  # A trade was canceled before its event was out, and the check knew it only later.
    6_000_295,  # Repaired trades of before their symbol was subscribed: all since were expected.
]


# The same, of seeds that have every stream unasked.
FOUND_AMONG_ALL = [
    4_000_465,  # A trade of before its symbol was subscribed, reported after, was not asked for.
    4_002_316,  # History was ahead of a dead connection: the gap of order books began too late.
    4_000_740,  # An article larger than the simulator's send buffer made its client a slow one.
    4_000_345,  # A daily bar came again as the run before had left it: it counted as missing.
    7_000_233,  # The last change of a book was from the future by the clock: it is not out.
    7_000_409,  # Two exchanges gave the same id: a canceled trade seemed to have come.
    7_102_488,  # An option's trade was held back, and came in a frame that was sent twice.
    4_002_290,  # Another feed than that of stocks was refused for good, and waited for long.
]


# The same, with a gateway.
FOUND_WITH_GATEWAYS = [
    9_310_035,  # Sold and bought again before a fill came: the new average counted as the start's.
]


# The same, with a standby group.
FOUND_IN_GROUPS = [
    171_293,  # A stopped leader went on, where Redis was empty and another had led meanwhile.
    201_647,  # The latest of REST had also come live, behind one of its time: their order changed.
    171_404,  # A connection was subscribed, brought nothing and ended: it left no gap.
]


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", [1, 3])  # CI also runs others for two minutes
def test_every_promise_is_kept_whatever_goes_wrong(seed: int) -> None:
    outcome = simulate(seed)
    assert outcome.violations == []
    assert outcome.published


@pytest.mark.parametrize(("seed", "only"), FOUND)
def test_what_a_seed_found_stays_fixed(seed: int, only: tuple[str, ...]) -> None:
    assert simulate(seed, only=only, account=False, gateway=False).violations == []


@pytest.mark.parametrize("seed", [5_000_002, 5_000_003])
def test_every_promise_is_kept_of_every_stream(seed: int) -> None:
    outcome = simulate(seed, account=True)
    assert outcome.violations == []
    assert outcome.published


@pytest.mark.parametrize("seed", FOUND_IN_ACCOUNTS)
def test_what_a_seed_found_in_an_account_stays_fixed(seed: int) -> None:
    assert simulate(seed, account=True, gateway=False).violations == []


@pytest.mark.parametrize("seed", FOUND_AMONG_ALL)
def test_what_a_seed_found_among_all_stays_fixed(seed: int) -> None:
    assert simulate(seed, gateway=False).violations == []


@pytest.mark.parametrize("seed", FOUND_WITH_GATEWAYS)
def test_what_a_seed_found_with_a_gateway_stays_fixed(seed: int) -> None:
    assert simulate(seed, newer=False).violations == []


@pytest.mark.parametrize("seed", FOUND_IN_GROUPS)
def test_what_a_seed_found_in_a_group_stays_fixed(seed: int) -> None:
    assert simulate(seed, group=True).violations == []


@pytest.mark.parametrize("account", [False, True])
def test_a_gateway_has_what_the_account_has(account: bool) -> None:
    outcome = simulate(8_100_001, only=("none",), account=account)
    assert outcome.violations == []
    assert outcome.faults


def test_a_part_of_the_seeds_has_every_stream_and_every_seed_a_gateway() -> None:
    plans = [Plan.draw(seed) for seed in range(100)]
    assert 10 < sum(plan.account is not None for plan in plans) < 40
    assert all(plan.trading is not None for plan in plans)
    assert {plan.trading.mark for plan in plans if plan.trading} == {"mid", "exit", "last"}


@pytest.mark.parametrize("seed", [20_000_005, 20_000_022])
def test_every_promise_of_a_group_is_kept(seed: int) -> None:
    outcome = simulate(seed, group=True)
    assert outcome.violations == []
    assert outcome.published


def test_a_part_of_the_seeds_has_a_group() -> None:
    plans = [Plan.draw(seed, group=None) for seed in range(100)]
    assert 10 < sum(plan.members > 0 for plan in plans) < 40
    assert {plan.members for plan in plans} == {0, 2, 3}
    assert not any(Plan.draw(seed, account=True, group=None).members for seed in range(100))


def test_a_plan_with_every_fault_of_a_group_is_drawn_now_and_then() -> None:
    names = {name for seed in range(30) for name in Plan.draw(seed, group=True).faults}
    assert names == set(GROUP_FAULTS)
    assert {name.partition("_")[0] for name in names} == set(GROUP_SEAMS)


@pytest.mark.parametrize(
    ("seed", "another", "kind"),
    [
        (3, 16, {}),
        (5_000_021, 5_000_011, {"account": True}),
        (20_000_014, 20_000_019, {"group": True}),
    ],
    ids=["service", "account", "group"],
)
def test_a_seed_replays_exactly_and_without_threads(
    seed: int, another: int, kind: dict[str, bool]
) -> None:
    before = set(threading.enumerate())
    first, second, other = (simulate(each, **kind) for each in (seed, seed, another))
    assert first.trace == second.trace != other.trace
    assert first.faults == second.faults
    assert first.faults.total()
    assert set(threading.enumerate()) <= before


def test_a_plan_with_every_fault_is_drawn_now_and_then() -> None:
    names = {name for seed in range(20) for name in Plan.draw(seed).faults}
    assert names == set(FAULTS)
    assert {name.partition("_")[0] for name in names} == set(SEAMS)


async def _order_of_tasks() -> list[int]:
    order: list[int] = []

    async def note(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(note, number)
    return order


def test_the_seed_decides_the_order_of_tasks() -> None:
    orders = [run_seeded(seed, _order_of_tasks) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.pins
def test_trios_private_scheduler_is_as_it_was_left() -> None:
    scheduler = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    with seeded_scheduling(1):
        assert scheduler._ALLOW_DETERMINISTIC_SCHEDULING is True
    assert (scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()) == before
