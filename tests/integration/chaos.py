"""Lets members of a group of real processes fail, and cuts their ways, in a random order.

``just chaos 100`` runs it. A round hits the leader, a standby, or in a group of three two members at
once or the next leader too, each with one of :data:`FAULTS`. Every quote is compared with the market's
own record at the end, as :mod:`tests.integration.standby` says, and the time of each takeover is
printed.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import anyio.from_thread
import attrs

from mdservice.publish.lease import LEASE_S
from tests.conftest import RealServer
from tests.integration.conftest import Program, Stage, eventually, patient
from tests.integration.network import Network
from tests.integration.standby import Group, resume, stop

__all__ = ["FAULTS", "Round", "chaos", "chaos_group"]

FAULTS: Mapping[str, int] = {
    "kill": 3,
    "stop": 3,
    "end": 2,
    "redis reset": 3,
    "redis silent": 4,
    "redis one-way": 2,
    "feed reset": 2,
    "feed silent": 2,
}
"""Each fault of a member, and how often it is chosen.

``kill``, ``stop`` and ``end`` are SIGKILL, SIGSTOP and SIGTERM. The others cut the member's way to
Redis or to all of Alpaca: ``reset`` ends every connection, ``silent`` leaves them open and holds what
comes until the way is open again, and ``one-way`` holds only the answers. Meanwhile new connections
are refused, or not answered.
"""
_LASTS_S = dict.fromkeys(FAULTS, 4.0) | {"kill": 0.5, "end": 0.5, "feed silent": 10.0}
"""How long they last at most, or go on once another member leads, seconds."""
_NEXT_TOO = 0.4
"""The share of the takeovers in a group of three in which the next leader fails too."""
_BRIEF = 0.3
"""The share of the cuts that end at any time, also before the lease does."""
_LEAD_WITHIN_S = LEASE_S + 1.0
"""Within which a standby leads once the leader has died, stands still, or is cut from Redis."""
_LOST = ("kill", "stop", "redis reset", "redis silent")
"""Faults of a leader that cannot give its lease up."""


@attrs.frozen
class _Hit:
    """A fault of one member.

    Attributes:
        member: None for whoever leads next.
        brief: Whether it may be over before another member leads.
        lasts_s: How long it lasts; if it is not brief, after another member leads.
        refuses: Whether a cut way refuses new connections, instead of not answering.
    """

    member: Program | None
    role: str
    fault: str
    brief: bool
    lasts_s: float
    refuses: bool

    def __str__(self) -> str:
        text = f"{self.role} {self.fault}"
        if " " not in self.fault:
            return text
        text += ", refuses" if self.refuses else ", hangs"
        return f"{text}, {self.lasts_s:.1f} s{'' if self.brief or self.spares else ' more'}"

    @property
    def deposes(self) -> bool:
        """Whether another member leads then, for sure."""
        return self.role != "standby" and not self.brief and not self.spares

    @property
    def spares(self) -> bool:
        """Whether the member keeps the lead, if it has it."""
        return self.fault.startswith("feed")


@attrs.frozen
class Round:
    """What a round has shown.

    Attributes:
        kind: The faults, for the table.
        faults: The faults in full.
        led_s: When another member led, from the fault on, seconds; None where none had to.
        pause_s: The longest time without an event, seconds: from the fault on, or, for a leader
            without its feed, from when that was back.
    """

    kind: str
    faults: str
    led_s: float | None
    pause_s: float

    @property
    def late(self) -> bool:
        """Whether the standby led too late after the leader was lost, also for a busy machine."""
        return self.lost and self.led_s is not None and self.led_s > patient(_LEAD_WITHIN_S)

    @property
    def lost(self) -> bool:
        """Whether the leader was lost, and no other member."""
        return self.kind in {f"leader {fault}" for fault in _LOST}


def chaos_group(stage: Stage, size: int = 2, *, slot_hold_s: float = 0.0) -> Group:
    """A group whose ways can be cut, and which gives a silent feed up soon."""
    return Group(stage, size, ways=True, slot_hold_s=slot_hold_s, MDSERVICE_MUTE_AFTER="3")


def chaos(
    group: Group, rounds: int, rng: random.Random, faults: Mapping[str, int] = FAULTS
) -> list[Round]:
    """Let members fail so often, with these faults; return what each round has shown."""
    took = []
    for number in range(rounds):
        leader = group.settled()
        group.more(rng.randrange(1, 60))
        took.append(_round(group, _draw(group, leader, rng, faults)))
        led_s = took[-1].led_s
        led = "" if led_s is None else f", another leads after {led_s:.2f} s"
        text = f"{number + 1:4} {took[-1].pause_s:6.2f} s  {took[-1].faults}{led}"
        print(text, flush=True)  # noqa: T201
    return took


def _draw(
    group: Group, leader: Program, rng: random.Random, faults: Mapping[str, int]
) -> list[_Hit]:
    """Which members are hit, and by what."""
    standbys = [member for member in group.members if member is not leader]
    rng.shuffle(standbys)
    chance = rng.random()
    hit: list[Program | None]
    if len(standbys) > 1 and chance < 0.1:
        hit = [*standbys]
    elif len(standbys) > 1 and chance < 0.3:
        hit = [leader, standbys[0]]
    else:
        hit = [leader if chance < 0.8 else standbys[0]]
    found = []
    for member in hit:
        role = "leader" if member is leader else "standby"
        found.append(_draw_fault(member, role, rng, faults))
    if len(standbys) > 1 and len(found) == 1 and found[0].deposes and rng.random() < _NEXT_TOO:
        found.append(_draw_fault(None, "next leader", rng, faults))
    return found


def _draw_fault(
    member: Program | None, role: str, rng: random.Random, faults: Mapping[str, int]
) -> _Hit:
    (fault,) = rng.choices([*faults], [*faults.values()])
    brief = " " in fault and rng.random() < _BRIEF
    lasts_s = rng.uniform(0.2, LEASE_S) if brief else rng.uniform(0, _LASTS_S[fault])
    return _Hit(member, role, fault, brief, lasts_s, rng.random() < 0.5)


def _round(group: Group, hits: Sequence[_Hit]) -> Round:
    leader = group.leader()
    began_s = time.monotonic()
    for hit in hits:
        if hit.member is not None:
            _fail(group, hit)
    led_s = None
    if any(hit.deposes for hit in hits):
        following = _next_leader(group, [leader])
        led_s = time.monotonic() - began_s
        if (last := hits[-1]).member is None:
            time.sleep(last.lasts_s / 4)  # it may have its feed by now, or not
            hits = [*hits[:-1], attrs.evolve(last, member=following)]
            _fail(group, hits[-1])
            if last.deposes:
                _next_leader(group, [leader, following])
    time.sleep(max(hit.lasts_s for hit in hits))
    if hits[0].role == "leader" and hits[0].spares:
        began_s = time.monotonic()
    for hit in hits:
        _end(group, hit)
    after = group.settled()
    if all(hit.spares or hit.role == "standby" for hit in hits):
        assert after is leader, f"another member leads after {', '.join(map(str, hits))}"
    group.more(5)
    kind = f"{hits[0].role} {hits[0].fault}"
    if len(hits) > 1:
        kind += ", another too" if hits[1].role == "standby" else ", the next too"
    return Round(kind, "; ".join(map(str, hits)), led_s, _longest_pause(group, began_s))


def _next_leader(group: Group, before: Collection[Program]) -> Program:
    """Wait until a member leads that is none of these."""
    what = lambda: [(m.pid, group.state(m), m.said) for m in group.members]  # noqa: E731
    found: Program = eventually(lambda: group.leading(besides=before), within=60, what=what)
    return found


def _way(group: Group, hit: _Hit) -> Network:
    assert hit.member is not None
    ways = group.ways[hit.member]
    return ways.feed if hit.spares else ways.redis


def _fail(group: Group, hit: _Hit) -> None:
    assert hit.member is not None
    if hit.fault == "stop":
        stop(hit.member)
    elif hit.fault in ("kill", "end"):
        by = signal.SIGKILL if hit.fault == "kill" else signal.SIGTERM
        hit.member.process.send_signal(by)
    else:
        way = _way(group, hit)
        (way.refuse if hit.refuses else way.hang)()
        if hit.fault.endswith("reset"):
            way.reset()
        else:
            way.hold(answers_only=hit.fault.endswith("one-way"))


def _end(group: Group, hit: _Hit) -> None:
    assert hit.member is not None
    if hit.fault == "stop":
        resume(hit.member)
    elif hit.fault in ("kill", "end"):
        hit.member.code()
        group.replace(hit.member)
    else:
        _way(group, hit).up()


def _longest_pause(group: Group, began_s: float) -> float:
    times = [at_s for at_s in group.recording.times if at_s >= began_s]
    return max(after - before for before, after in pairwise([began_s, *times]))


def main() -> int:
    """Run it, and print the times; fail if a standby led too late."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--members", type=int, default=2, choices=(2, 3))
    parser.add_argument(
        "--slot-hold",
        type=float,
        default=0.0,
        help="how long Alpaca holds the connection of a member that died, seconds",
    )
    parser.add_argument("--only", choices=[*FAULTS], nargs="*", help="these kinds of faults alone")
    chosen = parser.parse_args()
    faults = {fault: FAULTS[fault] for fault in chosen.only or FAULTS}
    print(f"seed {chosen.seed}", flush=True)  # noqa: T201
    with anyio.from_thread.start_blocking_portal(backend="asyncio") as portal:
        stage = Stage(portal, RealServer)
        try:
            group = chaos_group(stage, chosen.members, slot_hold_s=chosen.slot_hold)
            took = chaos(group, chosen.rounds, random.Random(chosen.seed), faults)
            group.finish()
        finally:
            stage.close()
    for kind in sorted({each.kind for each in took}):
        text = _spread([each.pause_s for each in took if each.kind == kind])
        print(f"{kind}: longest pause {text}")  # noqa: T201
    led = [each.led_s for each in took if each.lost and each.led_s is not None]
    late = sum(each.late for each in took)
    if led:
        text = f"{_spread(led)}; {late} later than {_LEAD_WITHIN_S:g} s"
        print(f"leader lost: a standby leads {text}")  # noqa: T201
    print("0 lost, 0 twice, no write by a deposed leader")  # noqa: T201
    return 1 if late else 0


def _spread(seconds: Sequence[float]) -> str:
    p50 = statistics.median(seconds)
    return f"{len(seconds)} times, p50 {p50:.2f} s, max {max(seconds):.2f} s"


if __name__ == "__main__":
    sys.exit(main())
