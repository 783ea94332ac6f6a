"""Services of one group over Redis Sentinel: the primary fails over, alone or with the leader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.integration.conftest import Stage, eventually
from tests.integration.sentinels import SentinelGroup, wait_until
from tests.integration.standby import Group


class Redis:
    """What a group of services needs of Redis.

    Attributes:
        path: The port of the server that is recorded.
    """

    def __init__(self, servers: SentinelGroup) -> None:
        self.servers = servers
        self.url = servers.url
        self.path = servers.witness().port

    def client(self) -> Any:
        return self.servers.primary.client()


@pytest.fixture
def servers() -> Iterator[SentinelGroup]:
    with closing(SentinelGroup()) as made:
        made.start()
        yield made


def kill(servers: SentinelGroup) -> None:
    servers.primary.kill()
    servers.moved()


def ask(servers: SentinelGroup) -> None:
    servers.fail_over()


def hang(servers: SentinelGroup) -> None:
    servers.primary.stop_answering()
    servers.moved()


def leads_alone(group: Group) -> None:
    """One leads, all others stand by, and all name the same leader."""

    def look() -> bool:
        states = [member.status() for member in group.members]
        leading = [one for one in states if one["state"] in ("running", "degraded")]
        named = {(one["standby"]["leader"], one["standby"]["epoch"]) for one in states}
        return len(leading) == len(named) == 1

    eventually(look, within=60, what=lambda: [member.status() for member in group.members])


@pytest.mark.parametrize("way", [kill, ask, hang])
def test_a_failover_leaves_one_leader(
    way: Callable[[SentinelGroup], None], stage: Stage, servers: SentinelGroup
) -> None:
    group = Group(stage, redis=Redis(servers))
    group.standby()
    group.more()
    old = servers.primary
    way(servers)
    group.leader()
    group.more()
    leads_alone(group)
    if way is hang:
        old.answer_again()
        servers.rejoined(old)
        group.more()
        leads_alone(group)
    group.finish(may_lose=True)


def test_a_leader_that_dies_with_the_primary_is_followed(
    stage: Stage, servers: SentinelGroup
) -> None:
    group = Group(stage, redis=Redis(servers))
    first, second = group.leader(), group.standby()
    group.more()
    first.process.kill()
    servers.primary.kill()
    servers.moved()
    assert group.leader(within=90) is second
    group.more()
    group.finish(may_lose=True)
    epochs = [epoch for epoch, _ in group.recording.writers]
    assert (min(epochs), max(epochs)) == (1, 2)


def test_what_the_replica_lacked_is_a_gap(stage: Stage, servers: SentinelGroup) -> None:
    group = Group(stage, redis=Redis(servers))
    leader = group.leader()
    group.standby()
    group.more()
    with servers.primary.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    (replica,) = servers.replicas
    wait_until(lambda: replica.role[3] != b"connected")
    begun = leader.counter("events_published")
    eventually(lambda: leader.counter("events_published") > begun + 100)
    kill(servers)
    group.leader()
    group.more()
    leads_alone(group)
    group.finish(may_lose=True)
    assert any(state["state"] == "gap" for state in group.recording.states)
