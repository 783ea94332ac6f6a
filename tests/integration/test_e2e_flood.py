"""Ten thousand quotes a second and more, while Redis does not answer."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import patient

T0 = 1_763_653_904_208_912_345
SYMBOLS = [f"F{chr(65 + n // 20)}{chr(65 + n % 20)}" for n in range(100)]
BACKLOG = 10_000


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Flood:
    """Numbered quotes of all symbols, so many a second; remembers how many of each."""

    def __init__(self, simulator: Any) -> None:
        self.sent = 0
        self._simulator = simulator

    def run(self, quotes: int, per_s: int) -> None:
        """Send so many more, at this rate."""
        slice_s = 0.025
        size = int(per_s * slice_s)
        started, end = time.monotonic(), self.sent + quotes
        slices = 0
        while self.sent < end:
            self._simulator.send_quotes(
                [
                    {
                        "S": SYMBOLS[number % len(SYMBOLS)],
                        "bp": 1,
                        "ap": 2 + number,
                        "t": T0 + number,
                    }
                    for number in range(self.sent, min(self.sent + size, end))
                ]
            )
            self.sent = min(self.sent + size, end)
            slices += 1
            time.sleep(max(0.0, started + slices * slice_s - time.monotonic()))

    @property
    def newest(self) -> dict[str, int]:
        """The last ask of each symbol."""
        first = self.sent - len(SYMBOLS)
        return {SYMBOLS[n % len(SYMBOLS)]: 2 + n for n in range(first, self.sent)}

    @property
    def counts(self) -> Counter[str]:
        return Counter(SYMBOLS[n % len(SYMBOLS)] for n in range(self.sent))


def check_everything(stage: Any, service: Any, valkey: Any, flood: Flood) -> dict[str, int]:
    """After it all: the counters add up, and the log and the keys agree with them."""
    counters: dict[str, int] = service.until(
        lambda s: (
            s["redis"]["connected"]
            and s["counters"]["quotes_accepted"] == flood.sent
            and s["counters"]["events_published"] + s["counters"]["events_conflated"] == flood.sent
            and s["counters"]
        ),
        within=20,
    )
    assert counters["quotes_received"] == flood.sent
    assert counters["quotes_stale"] == 0
    counts = flood.counts
    with valkey.client() as client:
        last = dict.fromkeys(SYMBOLS, 0)
        missing = entries = 0
        for _, fields in client.xrange("log"):
            event = stage.exact(fields[b"data"])
            step = event["seq"] - last[event["symbol"]]
            assert step >= 1
            missing += step - 1
            last[event["symbol"]] = event["seq"]
            entries += 1
        assert last == counts, "each symbol's last event is its newest"
        assert entries == counters["events_published"]
        assert missing == counters["events_conflated"]
        for symbol, ask in flood.newest.items():
            price = stage.exact(client.get(f"price:{symbol}"))
            assert (price["ask"], price["seq"]) == (ask, counts[symbol])
    stage.eventually(lambda: service.ready() == (True, []), what=service.ready)
    return counters


@pytest.mark.parametrize("driver", ["websockets", "alpaca-py"])
def test_a_flood_beside_a_redis_that_is_paused_is_conflated_and_counted(
    stage: Any, driver: str
) -> None:
    simulator, valkey = stage.simulator(), stage.valkey()
    service = stage.service(
        simulator, valkey, MDSERVICE_DRIVER=driver, MDSERVICE_BACKLOG=str(BACKLOG),
        MDSERVICE_SYMBOLS=",".join(SYMBOLS), MDSERVICE_EVENT_LOG="log",
    ).wait_ready()  # fmt: skip
    flood = Flood(simulator)
    flood.run(1_000, 12_000)
    service.until(lambda s: s["counters"]["events_published"] == 1_000)
    valkey.stop_answering()
    try:
        flood.run(22_000, 12_000)
        full = rss_mib(service.pid)
        service.until(lambda s: s["counters"]["quotes_accepted"] == flood.sent)
        assert service.counter("events_conflated") > 0
        flood.run(22_000, 12_000)
        service.until(lambda s: s["counters"]["quotes_accepted"] == flood.sent)
        after = rss_mib(service.pid)
        # Its own answers are the newest ones, whatever Redis does.
        for symbol, ask in list(flood.newest.items())[:5]:
            assert service.get(f"/api/v1/market-data/prices/{symbol}")["ask"] == ask
        assert after < 300
        assert after - full < 15, f"{full} MiB with a full backlog, {after} MiB later"
    finally:
        valkey.answer_again()
    counters = check_everything(stage, service, valkey, flood)
    assert counters["events_conflated"] >= 44_000 - 2 * BACKLOG
    assert counters["events_published"] >= BACKLOG // 2


def test_a_flood_into_a_redis_that_answers_loses_nothing(stage: Any) -> None:
    simulator, valkey = stage.simulator(), stage.valkey()
    service = stage.service(
        simulator, valkey, MDSERVICE_SYMBOLS=",".join(SYMBOLS), MDSERVICE_EVENT_LOG="log"
    ).wait_ready()
    flood = Flood(simulator)
    flood.run(30_000, 12_000)
    counters = check_everything(stage, service, valkey, flood)
    assert counters["events_conflated"] == 0
    latency = service.status()["latency_ms"]["receive_to_redis"]
    assert latency["p50"] < patient(1000)
    assert service.end() == 0
