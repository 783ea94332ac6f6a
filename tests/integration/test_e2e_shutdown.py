"""The end of a service on a signal: what it still writes, how long it takes, with what code."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
import redis

T0 = 1_763_653_904_208_912_345
SYMBOLS = ("AAPL", "MSFT")


def log_of(client: redis.Redis, symbol: str, exact: Any) -> list[int]:
    """The numbers of a symbol's events in the event log, in order."""
    events = [fields for _, fields in client.xrange("log")]
    mine = [fields[b"data"] for fields in events if fields[b"symbol"] == symbol.encode()]
    return [exact(data)["seq"] for data in mine]


def a_service(stage: Any, **config: Any) -> tuple[Any, Any, Any]:
    simulator, valkey = stage.simulator(**config), stage.valkey()
    service = stage.service(
        simulator, valkey, MDSERVICE_SYMBOLS=",".join(SYMBOLS), MDSERVICE_EVENT_LOG="log"
    )
    return simulator, valkey, service.wait_ready()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_written_before_the_end(stage: Any, by: signal.Signals) -> None:
    simulator, valkey, service = a_service(stage)
    valkey.stop_answering()
    count = 2000
    simulator.send_quotes([{"S": "AAPL", "bp": 1, "ap": 2 + n, "t": T0 + n} for n in range(count)])
    service.until(lambda s: s["counters"]["quotes_accepted"] == count)
    started = time.monotonic()
    service.process.send_signal(by)
    time.sleep(0.5)
    assert service.process.poll() is None, f"it did not wait: {service.said}"
    valkey.answer_again()
    assert service.code(within=5) == 0, service.said
    assert time.monotonic() - started < 5
    with valkey.client() as client:
        assert log_of(client, "AAPL", stage.exact) == list(range(1, count + 1))
        assert stage.exact(client.get("price:AAPL"))["seq"] == count


def test_it_drains_while_the_feed_still_sends(stage: Any) -> None:
    simulator, valkey, service = a_service(stage, rate=2_000)
    service.until(lambda s: s["counters"]["events_published"] > 500)
    assert service.end() == 0, service.said
    with valkey.client() as client:
        for symbol in SYMBOLS:
            numbers = log_of(client, symbol, stage.exact)
            assert numbers == list(range(1, len(numbers) + 1))
            assert stage.exact(client.get(f"price:{symbol}"))["seq"] == numbers[-1]
    assert not simulator.simulator.connections, "it left the feed"


def test_it_ends_within_5_s_where_redis_never_answers_and_at_once_on_a_second_signal(
    stage: Any,
) -> None:
    made = [a_service(stage) for _ in range(2)]
    for simulator, valkey, service in made:
        valkey.stop_answering()
        simulator.quotes(("AAPL", 1, 2, T0))
        service.until(lambda s: s["counters"]["quotes_accepted"] == 1)
    started = time.monotonic()
    for _, _, service in made:
        service.process.send_signal(signal.SIGTERM)
    _, _, patient = made[0]
    _, _, hurried = made[1]
    time.sleep(0.4)
    assert hurried.process.poll() is None
    hurried.process.send_signal(signal.SIGTERM)
    again = time.monotonic()
    hurried.code(within=5)
    assert time.monotonic() - again < 0.5, hurried.said
    assert patient.code(within=6) == 0, patient.said
    assert time.monotonic() - started < 5.1
    for _, valkey, _ in made:
        valkey.answer_again()
