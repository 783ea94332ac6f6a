"""Two services of one group: one dies, stops, ends or loses Redis, and the other goes on."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.integration.chaos import chaos, chaos_group
from tests.integration.conftest import Stage, eventually
from tests.integration.standby import Group, resume, stop


def test_a_standby_leads_after_kill_9_and_nothing_is_lost_or_repeated(stage: Stage) -> None:
    group = Group(stage)
    first, second = group.leader(), group.standby()
    group.more()
    killed_s = time.monotonic()
    first.process.kill()
    group.recording.next_event_s(killed_s + 0.5)
    assert group.leader() is second
    group.more()
    group.finish()
    epochs = [epoch for epoch, _ in group.recording.writers]
    assert (min(epochs), max(epochs)) == (1, 2)
    states = [state["state"] for state in group.recording.states]
    assert states.count("takeover") == 1
    assert states.index("takeover") > states.index("connected")


def test_a_stopped_leader_writes_nothing_after_it_continues_and_stands_by(stage: Stage) -> None:
    group = Group(stage)
    first = group.leader()
    group.more()
    stop(first)
    eventually(lambda: group.leading() not in (None, first), within=60, what="a new leader")
    before = len(group.recording.writers)
    resume(first)
    first.until(lambda status: status["state"] == "standby", within=60)
    assert group.leader() is not first  # the slot is free now
    group.more()
    group.finish()
    assert {epoch for epoch, _ in group.recording.writers[before:]} == {2}


def test_sigterm_of_the_leader_passes_the_lead_at_once(stage: Stage) -> None:
    group = Group(stage)
    first, second = group.leader(), group.standby()
    group.more()
    assert first.end(signal.SIGTERM) == 0
    ended_s = time.monotonic()
    second.until(lambda status: status["standby"]["epoch"] == 2 and status["state"] != "standby")
    assert time.monotonic() - ended_s < 2.5  # far less than the lease
    assert group.leader() is second
    group.more()
    group.finish()


def test_a_standby_answers_and_names_its_leader(stage: Stage) -> None:
    group = Group(stage)
    leader, standby = group.leader(), group.standby()
    group.more()
    status = standby.status()
    known = leader.status()["standby"]
    assert status["standby"] == known
    assert sorted(known) == ["epoch", "group", "leader", "since"]
    assert (known["group"], known["epoch"]) == ("desk", 1)
    assert f"process {leader.pid}" in known["leader"]
    assert status["redis"]["connected"]
    assert standby.http.get("/health/live").status_code == 200
    ready, reasons = standby.ready()
    assert not ready
    assert f"process {leader.pid}" in reasons[0]
    answer = standby.http.post("/api/v1/market-data/subscribe", json={"symbols": ["TSLA"]})
    assert answer.status_code == 503
    assert str(leader.socket) in answer.json()["detail"]
    eventually(lambda: standby.http.get("/api/v1/market-data/prices/AAPL").status_code == 200)
    assert "mdservice_group_leads 0.0" in standby.http.get("/metrics").text
    assert "mdservice_group_leads 1.0" in leader.http.get("/metrics").text
    assert "mdservice_group_standby_alive 1.0" in leader.http.get("/metrics").text
    group.finish()


def test_symbols_of_the_api_outlive_their_leader(stage: Stage) -> None:
    group = Group(stage)
    first, second = group.leader(), group.standby()
    path = "/api/v1/market-data"
    assert first.http.post(f"{path}/subscribe", json={"symbols": ["TSLA"]}).is_success
    assert first.http.post(f"{path}/unsubscribe", json={"symbols": ["MSFT"]}).is_success
    first.process.kill()
    assert group.leader() is second
    assert second.http.get(f"{path}/subscriptions").json()["sources"] == {
        "AAPL": ["settings"],
        "TSLA": ["api"],
    }
    group.market.stop()
    group.recording.hear_all(group.valkey)
    group.check_fenced()


def test_a_restart_of_redis_leaves_the_leader_its_lead(stage: Stage) -> None:
    group = Group(stage)
    first, second = group.leader(), group.standby()
    group.more()
    group.valkey.kill()
    path, group.valkey.path = group.valkey.path, group.valkey.path.with_name("n")
    group.valkey.start()
    group.recording.open(group.valkey.path)
    group.valkey.path.rename(path)
    group.valkey.path = path
    assert group.leader() is first
    assert second.until(lambda status: status["standby"]["leader"] is not None)
    group.more()
    group.finish()


def test_a_group_that_fails_at_random_loses_and_repeats_nothing(stage: Stage) -> None:
    group = Group(stage)
    signals = {"kill": 1, "stop": 1, "end": 1}
    rounds = chaos(group, 3, random.Random(2764), signals)
    assert [each.kind for each in rounds] == ["leader stop", "leader kill", "leader end"]
    assert not any(each.late for each in rounds)
    group.finish()


def test_three_whose_ways_are_cut_at_random_lose_and_repeat_nothing(stage: Stage) -> None:
    group = chaos_group(stage, 3)
    cuts = {"redis silent": 1, "redis reset": 1, "feed reset": 1}
    first, second = chaos(group, 2, random.Random(41), cuts)
    assert (first.kind, second.kind) == ("leader redis silent, another too", "leader feed reset")
    assert first.led_s is not None
    assert second.led_s is None
    group.finish()


def test_the_lead_passes_on_and_on(stage: Stage) -> None:
    group = Group(stage)
    for _ in range(2):
        leader = group.leader()
        group.standby()
        group.more()
        leader.process.kill()
        leader.process.wait()
        group.members.remove(leader)
        group.members.append(group.start().wait_answers())
    group.leader()
    group.more()
    group.finish()
    assert max(epoch for epoch, _ in group.recording.writers) == 3


def test_a_group_without_a_redis_is_a_configuration_error(stage: Stage) -> None:
    program = stage.program("run", MDSERVICE_GROUP="desk")
    assert program.code() == 78
    assert "MDSERVICE_REDIS_URL" in program.stderr


@pytest.mark.parametrize("feed_too", [False, True])
def test_the_socket_of_another_member_is_in_use(stage: Stage, feed_too: bool) -> None:
    valkey = stage.valkey()
    env = {"MDSERVICE_FEED": "simulator", "MDSERVICE_GROUP": "desk"}
    env |= {"MDSERVICE_REDIS_URL": valkey.url, "MDSERVICE_HTTP": "off", "MDSERVICE_RELAY": "off"}
    first = stage.program("run", **env).wait_ready()
    folder = first.folder if not feed_too else None
    second = stage.program("run", folder=folder, **env)
    if feed_too:
        second.wait_answers()
        second.until(lambda status: status["state"] == "standby")
        assert first.status()["standby"]["leader"] == second.status()["standby"]["leader"]
    else:
        assert second.code() == 1
        assert "MDSERVICE_SOCKET" in second.stderr
