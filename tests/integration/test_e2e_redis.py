"""Redis killed, paused, restarted empty, or with another password; the feed goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.conftest import patient

T0 = 1_763_653_904_208_912_345
SYMBOLS = ("AAPL", "MSFT")


def log_of(client: redis.Redis, symbol: str, exact: Any) -> list[int]:
    """The numbers of a symbol's events in the event log, in order."""
    entries = client.xrange("log")
    return [
        exact(fields[b"data"])["seq"]
        for _, fields in entries
        if fields[b"symbol"] == symbol.encode()
    ]


class Feeder:
    """Sends a numbered quote of each symbol every few milliseconds until stopped."""

    def __init__(self, simulator: Any, every_s: float = 0.004) -> None:
        self.sent = 0
        self._simulator, self._every_s = simulator, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            number = self.sent + 1
            self._simulator.send_quotes(
                [{"S": symbol, "bp": 1, "ap": 1 + number, "t": T0 + number} for symbol in SYMBOLS]
            )
            self.sent = number

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.sent


def a_service(stage: Any, *options: str, **env: str) -> tuple[Any, Any, Any]:
    simulator, valkey = stage.simulator(), stage.valkey(*options)
    service = stage.service(
        simulator, valkey, MDSERVICE_SYMBOLS=",".join(SYMBOLS), MDSERVICE_EVENT_LOG="log", **env
    )
    return simulator, valkey, service


def not_ready(service: Any) -> list[str]:
    """Wait until it is not ready; the reasons."""

    deadline = time.monotonic() + patient(20)
    ready, reasons = service.ready()
    while ready and time.monotonic() < deadline:
        time.sleep(0.02)
        ready, reasons = service.ready()
    assert not ready, "still ready"
    return reasons


@pytest.mark.parametrize("how", ["short", "noticed"])
def test_after_a_pause_everything_is_there_once_and_in_order(stage: Any, how: str) -> None:
    simulator, valkey, service = a_service(stage)
    service.wait_ready()
    listener = stage.listener(valkey)
    feeder = Feeder(simulator)
    try:
        listener.wait("AAPL", 50)
        valkey.stop_answering()
        if how == "noticed":
            reasons = not_ready(service)
            assert any("redis" in reason.lower() for reason in reasons), reasons
            before = service.counter("quotes_accepted")
            service.until(lambda s: s["counters"]["quotes_accepted"] > before)
            price = service.get("/api/v1/market-data/prices/AAPL")
            assert price["seq"] > service.counter("events_published") / 2
        time.sleep(0.5)
    finally:
        valkey.answer_again()
        time.sleep(0.3)
        sent = feeder.stop()
    service.wait_ready()
    for symbol in SYMBOLS:
        events = listener.wait(symbol, sent)
        assert [event["seq"] for event in events] == list(range(1, sent + 1))
        with valkey.client() as client:
            assert log_of(client, symbol, stage.exact) == list(range(1, sent + 1))
            assert stage.exact(client.get(f"price:{symbol}"))["seq"] == sent
    counters = service.until(
        lambda s: s["counters"]["events_published"] == 2 * sent and s["counters"]
    )
    assert counters["quotes_accepted"] == 2 * sent
    assert counters["events_conflated"] == 0


def test_connections_cut_again_and_again_repeat_and_lose_nothing(stage: Any) -> None:
    simulator, valkey, service = a_service(stage)
    service.wait_ready()
    listener = stage.listener(valkey)
    feeder = Feeder(simulator, 0.001)
    try:
        with valkey.client() as client:
            for _ in range(25):
                time.sleep(0.06)
                client.client_kill_filter(_type="normal", skipme=True)
    finally:
        sent = feeder.stop()
    service.wait_ready()
    for symbol in SYMBOLS:
        events = listener.wait(symbol, sent)
        assert [event["seq"] for event in events] == list(range(1, sent + 1))
        with valkey.client() as client:
            assert log_of(client, symbol, stage.exact) == list(range(1, sent + 1))


def test_killed_and_restarted_empty_it_converges_within_about_a_second(stage: Any) -> None:
    simulator, valkey, service = a_service(stage)
    service.wait_ready()
    listener = stage.listener(valkey)
    simulator.quotes(*((symbol, 1, 2, T0) for symbol in SYMBOLS))
    listener.wait("MSFT", 1)
    service.until(lambda s: s["counters"]["events_published"] == 2)
    listener.close()
    valkey.kill()
    reasons = not_ready(service)
    assert any("redis" in reason.lower() for reason in reasons), reasons
    assert stage.beside(service, "health").process.returncode == 1
    status = service.status()
    assert status["state"] == "degraded"
    assert not status["redis"]["connected"]
    assert status["redis"]["last_error"]
    for number in range(1, 101):
        simulator.quotes(("AAPL", 1, 2 + number, T0 + number))
    status = service.until(lambda s: s["counters"]["quotes_accepted"] == 102 and s)
    assert status["counters"]["events_published"] == 2
    assert status["counters"]["events_conflated"] == 0
    assert status["feed"]["connected"]

    valkey.start()
    returned = time.monotonic()
    with valkey.client() as client:
        stage.eventually(lambda: client.exists("price:AAPL"), what=service.status)
        stage.eventually(
            lambda: log_of(client, "AAPL", stage.exact) == list(range(2, 102)),
            what=lambda: log_of(client, "AAPL", stage.exact),
        )
        assert time.monotonic() - returned < patient(3)
        assert stage.exact(client.get("price:AAPL"))["seq"] == 101
        assert log_of(client, "MSFT", stage.exact) == []
    service.wait_ready()


def test_a_wrong_password_is_a_reason_and_the_right_one_ends_it(stage: Any) -> None:
    simulator, valkey = stage.simulator(), stage.valkey()
    with valkey.client() as client:
        client.config_set("requirepass", "right")
    service = stage.service(
        simulator, f"unix://:wrong@{valkey.path}", MDSERVICE_SYMBOLS="AAPL"
    ).wait_answers()
    service.until(lambda s: s["feed"]["connected"])
    reasons = not_ready(service)
    assert any("redis" in reason.lower() for reason in reasons), reasons
    error = service.until(lambda s: s["redis"]["last_error"])
    assert "password" in error.lower() or "auth" in error.lower() or "WRONGPASS" in error
    assert "wrong@" not in service.http.get("/status").text
    simulator.quotes(("AAPL", 1, 2, T0))
    service.until(lambda s: s["counters"]["quotes_accepted"] == 1)
    with valkey.client(password="right") as client:
        client.config_set("requirepass", "wrong")
    service.wait_ready()
    with valkey.client(password="wrong") as client:
        stage.eventually(lambda: client.exists("price:AAPL"), what="the price")
    assert service.end() == 0


@pytest.mark.parametrize("how", ["read-only", "out of memory"])
def test_a_redis_that_refuses_writes_is_waited_for(stage: Any, how: str) -> None:
    simulator, valkey, service = a_service(stage)
    service.wait_ready()
    listener = stage.listener(valkey)
    simulator.quotes(("AAPL", 1, 2, T0))
    listener.wait("AAPL", 1)
    with valkey.client() as client:
        if how == "read-only":
            client.config_set("min-replicas-to-write", "1")
        else:
            client.config_set("maxmemory", "1")
        simulator.quotes(("AAPL", 2, 3, T0 + 1), ("AAPL", 3, 4, T0 + 2))
        reasons = not_ready(service)
        assert any("redis" in reason.lower() for reason in reasons), reasons
        assert service.status()["redis"]["last_error"]
        if how == "read-only":
            client.config_set("min-replicas-to-write", "0")
        else:
            client.config_set("maxmemory", "0")
        events = listener.wait("AAPL", 3)
        assert [event["seq"] for event in events] == [1, 2, 3]
        assert stage.exact(client.get("price:AAPL"))["seq"] == 3
    service.wait_ready()


def test_a_redis_that_is_not_there_yet_is_waited_for(stage: Any) -> None:
    simulator, valkey = stage.simulator(), stage.valkey()
    valkey.kill()
    service = stage.service(simulator, valkey, MDSERVICE_SYMBOLS="AAPL").wait_answers()
    service.until(lambda s: s["feed"]["connected"])
    assert not service.ready()[0]
    simulator.quotes(("AAPL", 1, 2, T0))
    service.until(lambda s: s["counters"]["quotes_accepted"] == 1)
    valkey.start()
    with valkey.client() as client:
        stage.eventually(lambda: client.exists("price:AAPL"), what=service.status)
    service.wait_ready()


def test_an_older_price_of_a_former_run_is_replaced_and_counting_starts_again(stage: Any) -> None:
    simulator, valkey, first = a_service(stage)
    first.wait_ready()
    listener = stage.listener(valkey)
    simulator.quotes(("AAPL", 1, 2, T0))
    listener.wait("AAPL", 1)
    assert first.end() == 0
    with valkey.client() as client:
        assert stage.exact(client.get("price:AAPL"))["seq"] == 1, "the price stays"
    second = stage.service(
        simulator, valkey, MDSERVICE_SYMBOLS="AAPL", MDSERVICE_EVENT_LOG="log"
    ).wait_ready()
    simulator.quotes(("AAPL", 3, 4, T0 + 1))
    stage.eventually(lambda: len(listener.raw) == 2, what="the second event")
    with valkey.client() as client:
        assert stage.exact(client.get("price:AAPL"))["bid"] == 3
    second.until(lambda s: s["counters"]["events_published"] == 1)


def test_the_event_log_and_the_prices_are_in_the_database_of_the_url(stage: Any) -> None:
    simulator, valkey = stage.simulator(), stage.valkey()
    service = stage.service(
        simulator, f"unix://{valkey.path}?db=3", MDSERVICE_SYMBOLS="AAPL"
    ).wait_ready()
    simulator.quotes(("AAPL", 1, 2, T0))
    with valkey.client(db=3) as client:
        stage.eventually(lambda: client.exists("price:AAPL"), what=service.status)
    assert Path(service.socket).exists()
