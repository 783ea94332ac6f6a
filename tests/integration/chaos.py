"""Kills, stops, continues and ends the leader of a group of real processes, in a random order.

``just chaos 100`` runs it. Every quote is compared with the market's own record at the end, as
:mod:`tests.integration.standby` says, and the time of each takeover is printed.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import time
from itertools import pairwise

import anyio.from_thread

from tests.conftest import RealServer
from tests.integration.conftest import Program, Stage, eventually
from tests.integration.standby import Group, resume, stop

__all__ = ["chaos"]

FAULTS = ("kill", "kill", "stop", "stop", "end")
"""Each fault of the leader, as often as it is chosen."""


def chaos(group: Group, rounds: int, rng: random.Random) -> list[tuple[str, float]]:
    """Let the leader fail so often; return each fault with the seconds to the next event."""
    took = []
    for number in range(rounds):
        leader, _ = group.leader(), group.standby()
        group.more(rng.randrange(1, 60))
        fault = rng.choice(FAULTS)
        began_s = time.monotonic()
        _fail(leader, fault)
        eventually(lambda old=leader: group.leading() not in (None, old), within=60, what=fault)
        if fault == "stop":
            time.sleep(rng.random())
            resume(leader)
            leader.until(lambda status: status["state"] == "standby", within=60)
        else:
            leader.code()
            group.members.remove(leader)
            leader.close()
            group.members.append(group.start().wait_answers())
        group.leader()
        group.more(5)
        took.append((fault, _until_next(group, began_s)))
        print(f"{number + 1:4} {fault:5} {took[-1][1]:6.2f} s", flush=True)  # noqa: T201
    return took


def _fail(leader: Program, fault: str) -> None:
    if fault == "stop":
        stop(leader)
    else:
        leader.process.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)


def _until_next(group: Group, began_s: float) -> float:
    """From the fault to the first event after the longest pause since."""
    times = [at_s for at_s in group.recording.times if at_s >= began_s]
    _, end_s = max(pairwise([began_s, *times]), key=lambda pair: pair[1] - pair[0])
    return end_s - began_s


def main() -> None:
    """Run it, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--members", type=int, default=2, choices=(2, 3))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)  # noqa: T201
    with anyio.from_thread.start_blocking_portal(backend="asyncio") as portal:
        stage = Stage(portal, RealServer)
        try:
            group = Group(stage, chosen.members)
            took = chaos(group, chosen.rounds, random.Random(chosen.seed))
            group.finish()
            lost_repeated = "0 lost, 0 twice, no write by a deposed leader"
        finally:
            stage.close()
    for fault in sorted(set(FAULTS)):
        seconds = [each for one, each in took if one == fault]
        if seconds:
            p50 = statistics.median(seconds)
            text = f"{fault}: {len(seconds)} times, p50 {p50:.2f} s, max {max(seconds):.2f} s"
            print(text)  # noqa: T201
    print(lost_repeated)  # noqa: T201


if __name__ == "__main__":
    main()
