"""The feed lost, refused and found again, for both drivers, as seen from outside."""

from __future__ import annotations

import itertools
import time
from datetime import datetime
from functools import partial
from typing import Any

import attrs
import pytest

DRIVERS = ["websockets", "alpaca-py"]
T0 = 1_763_653_904_208_912_345
T0_TEXT = "2025-11-20T15:51:44.208912345Z"


def states(listener: Any) -> list[str]:
    return [message["state"] for message in listener.states]


def told_driver(service: Any) -> str:
    driver: str = service.status()["feed"]["driver"]
    return driver


def check_times(listener: Any) -> None:
    for message in listener.states:
        assert message["at"].endswith("Z"), message
        datetime.fromisoformat(message["at"][:19] + "+00:00")


@attrs.frozen
class Line:
    """A service of one driver, shared; each test leaves it connected."""

    stage: Any
    driver: str
    simulator: Any
    service: Any
    listener: Any

    def symbol(self) -> str:
        symbol: str = self.stage.new_symbol()
        self.service.subscribe(symbol)
        return symbol

    def send(self, symbol: str, seq: int) -> list[dict[str, Any]]:
        """Send the symbol's next quote, whose number this is; its events."""
        self.simulator.quotes((symbol, seq, seq + 1, T0 + seq))
        heard: list[dict[str, Any]] = self.listener.wait(symbol, seq)
        return heard


@pytest.fixture(scope="module")
def lines(module_stage: Any) -> list[Line]:
    """One of each driver."""
    made = []
    for driver in DRIVERS:
        simulator, valkey = module_stage.simulator(), module_stage.valkey()
        listener = module_stage.listener(valkey)
        service = module_stage.service(
            simulator, valkey, MDSERVICE_DRIVER=driver, MDSERVICE_SYMBOLS="AAPL,MSFT"
        )
        made.append(Line(module_stage, driver, simulator, service, listener))
    for line in made:
        line.service.wait_ready()
        line.listener.state("connected")  # it travels by Redis, perhaps after the service is ready
        assert states(line.listener) == ["connected"]
    return made


@pytest.mark.parametrize("how", ["reset", "half-close", "close"])
def test_a_lost_connection_is_reported_made_again_and_subscribed_again(
    lines: list[Line], how: str
) -> None:
    def body(line: Line) -> None:
        symbol, simulator, listener = line.symbol(), line.simulator, line.listener
        line.send(symbol, 1)
        before, told = line.service.status(), len(listener.states)
        wanted = simulator.subscribed()

        simulator.drop(how)
        line.stage.eventually(
            lambda: {"disconnected", "connected", "gap"} <= set(states(listener)[told:]),
            what=lambda: listener.states[told:],
        )
        line.service.wait_ready()
        assert simulator.subscribed() == wanted
        assert [event["seq"] for event in line.send(symbol, 2)] == [1, 2]

        status = line.service.status()
        assert status["feed"]["driver"] == line.driver
        assert status["feed"]["last_error"]
        for counter in ("reconnects", "gaps"):
            assert status["counters"][counter] == before["counters"][counter] + 1
        assert status["feed"]["reconnects"] == status["counters"]["reconnects"]
        new = listener.states[told:]
        assert [m["state"] for m in new if "gap" not in m["state"]] == ["disconnected", "connected"]
        gap = next(m for m in new if m["state"] == "gap")
        assert gap["from"].startswith("2025-11-20T15:51:44.2089123")
        assert gap["to"] > gap["from"]
        assert symbol in gap["symbols"]
        check_times(listener)

    lines[0].stage.together(body, lines)


def test_while_the_feed_is_away_it_is_not_ready_and_says_so(lines: list[Line]) -> None:
    def body(line: Line) -> None:
        symbol, simulator, service = line.symbol(), line.simulator, line.service
        line.send(symbol, 1)
        simulator.refuse_upgrade(503, times=1000)
        simulator.drop()
        try:
            ready, reasons = line.stage.eventually(
                lambda: (told := service.ready()) and not told[0] and told, what="not ready"
            )
            assert not ready
            assert any("feed" in reason.lower() for reason in reasons)
            assert service.http.get("/health/live").status_code == 200
            status = service.until(
                lambda s: not s["feed"]["connected"] and s["feed"]["last_error"] and s
            )
            assert status["state"] == "degraded"
            health = line.stage.beside(service, "health")
            assert health.process.returncode == 1, health.said
            assert "feed" in (health.stdout + health.stderr).lower()

            # Prices that are known go on being told.
            assert service.get(f"/api/v1/market-data/prices/{symbol}")["bid"] == 1
            # A change of the subscriptions is kept for later, and done then.
            later = line.stage.new_symbol()
            pending = service.post("subscribe", params={"symbol": later})
            assert pending == {"status": "pending", "symbol": later, "symbols": [later]}
            gone = service.post("unsubscribe", params={"symbol": symbol})
            assert gone["status"] in {"pending", "unsubscribed"}
        finally:
            simulator.resume()
        line.stage.eventually(
            lambda: later in simulator.subscribed(), within=20, what=service.status
        )
        service.wait_ready()
        assert symbol not in simulator.subscribed()
        line.send(later, 1)

    lines[0].stage.together(body, lines)


def test_an_error_in_mid_stream_loses_nothing_that_comes_after(lines: list[Line]) -> None:
    def body(line: Line) -> None:
        symbol = line.symbol()

        def heard(count: int) -> bool:
            """Whether a quote of this number, sent if need be once more, has come through."""
            line.simulator.send_quotes([{"S": symbol, "bp": 1, "ap": 2, "t": T0 + count}])
            events = line.listener.events(symbol)
            return bool(events) and events[-1]["timestamp"].endswith(f"{345 + count}Z")

        for count, code in enumerate((400, 403, 405, 500, 999), 1):
            line.simulator.send_error(code)
            line.service.wait_ready()
            line.stage.eventually(partial(heard, count), what=code)
        seqs = [event["seq"] for event in line.listener.events(symbol)]
        assert seqs == list(range(1, len(seqs) + 1))

    lines[0].stage.together(body, lines)


def test_thousands_of_symbols_are_all_subscribed(lines: list[Line]) -> None:
    def body(line: Line) -> None:
        letters = "ABCDEFGHIJKLMNOPQRST"
        symbols = ["".join(t) for t in itertools.islice(itertools.product(letters, repeat=4), 3000)]
        line.service.subscribe(*symbols)
        line.stage.eventually(lambda: line.simulator.subscribed() >= set(symbols))
        reconnects = line.service.counter("reconnects")
        line.simulator.drop("close")
        line.service.until(lambda s: s["counters"]["reconnects"] == reconnects + 1)
        line.service.wait_ready()
        line.stage.eventually(lambda: line.simulator.subscribed() >= set(symbols))
        answer = line.service.post("unsubscribe", json={"symbols": symbols})
        assert answer["status"] in {"pending", "unsubscribed"}
        line.stage.eventually(lambda: not line.simulator.subscribed() & set(symbols))

    lines[0].stage.together(body, lines)


def test_credentials_refused_in_mid_run_are_fatal_but_do_not_end_it(lines: list[Line]) -> None:
    """The last one on the shared line."""

    def body(line: Line) -> None:
        symbol = line.symbol()
        line.send(symbol, 1)
        line.simulator.refuse_next(402, when="auth", times=1000)
        line.simulator.drop()
        fatal = line.listener.state("fatal", within=15)
        assert any("402" in str(value) or "auth" in str(value) for value in fatal.values()), fatal
        status = line.service.status()
        assert not status["feed"]["connected"]
        assert "402" in status["feed"]["last_error"] or "auth" in status["feed"]["last_error"]
        assert not line.service.ready()[0]
        tries = len(line.simulator.received)
        time.sleep(2)
        assert len(line.simulator.received) - tries <= 1, "retried slowly"
        check_times(line.listener)
        assert line.service.end() == 0

    lines[0].stage.together(body, lines)
