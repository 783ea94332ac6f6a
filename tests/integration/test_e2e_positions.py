"""Positions drive the feed: whole processes, Alpaca's trading API or a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sources(service: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = service.get("/api/v1/market-data/subscriptions")["sources"]
    return found


def when(service: Any, condition: Callable[[Any], Any]) -> Any:
    """The first status for which it holds."""
    return service.until(lambda status: condition(status) and status)


def hold(file: Path, *rows: tuple[str, str, str]) -> None:
    names = ("symbol", "qty", "avg_entry_price")
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"positions": [dict(zip(names, row, strict=True)) for row in rows]}))
    new.replace(file)


def with_file(stage: Any, simulator: Any, file: Path, **env: str) -> Any:
    return stage.service(
        simulator,
        stage.valkey(),
        MDSERVICE_POSITIONS=f"file:{file}",
        MDSERVICE_POSITIONS_INTERVAL="0.1",
        **env,
    )


def test_alpacas_own_positions_are_followed_as_trades_change_them(stage: Any) -> None:
    simulator = stage.simulator(positions={"AAPL": (10, "150.00"), "MSFT": (-2, "400")})
    service = stage.service(
        simulator,
        stage.valkey(),
        MDSERVICE_POSITIONS="alpaca",
        MDSERVICE_POSITIONS_INTERVAL="0.1",
        MDSERVICE_SYMBOLS="SPY",
    ).wait_ready()
    wanted = {"AAPL": ["positions"], "MSFT": ["positions"], "SPY": ["settings"]}
    stage.eventually(lambda: sources(service) == wanted, what=service.status)
    simulator.trade("TSLA", 5, 340)
    simulator.trade("SPY", 1, 600)
    wanted |= {"TSLA": ["positions"], "SPY": ["positions", "settings"]}
    stage.eventually(lambda: sources(service) == wanted, what=lambda: sources(service))
    stage.eventually(lambda: simulator.subscribed() == set(wanted))
    simulator.quotes(("TSLA", 341, 342))
    stage.eventually(lambda: service.counter("events_published") == 1)
    simulator.trade("SPY", -1, 600)
    report = when(service, lambda s: s["positions"]["held"] == 3)["positions"]
    assert report["state"] == "ok"
    assert report["source"].startswith("http://127.0.0.1:")
    assert sources(service)["SPY"] == ["positions", "settings"], "closed a moment ago"


def test_reasons_are_counted_by_symbol(stage: Any) -> None:
    simulator, file = stage.simulator(), stage.folder() / "positions.json"
    hold(file, ("AAPL", "1", "1"), ("MSFT", "1", "1"))
    service = with_file(stage, simulator, file, MDSERVICE_SYMBOLS="SPY").wait_ready()
    stage.eventually(lambda: "MSFT" in sources(service))
    service.subscribe("AAPL", "TSLA")
    assert sources(service)["AAPL"] == ["api", "positions"]
    service.post("unsubscribe", json={"symbols": ["AAPL", "MSFT", "TSLA"]})
    assert sources(service) == {
        "AAPL": ["positions"],
        "MSFT": ["positions"],
        "SPY": ["settings"],
    }
    stage.eventually(
        lambda: simulator.subscribed() == {"AAPL", "MSFT", "SPY"}, what=simulator.subscribed
    )


def test_at_the_symbol_limit_the_largest_are_followed_and_the_others_named(stage: Any) -> None:
    simulator = stage.simulator(symbol_limit=3)
    file = stage.folder() / "positions.json"
    hold(file, ("SMALL", "1", "1"), ("LARGE", "-9", "10"), ("MID", "5", "10"), ("TINY", "0.1", "1"))
    service = with_file(stage, simulator, file, MDSERVICE_SYMBOLS="SPY").wait_ready()
    stage.eventually(lambda: simulator.subscribed() == {"SPY", "LARGE", "MID"})
    report = when(service, lambda s: s["positions"]["left_out"])["positions"]
    assert report["left_out"] == ["SMALL", "TINY"]
    assert service.ready()[0]
    hold(file, ("SMALL", "999", "1"), ("LARGE", "-9", "10"), ("MID", "5", "10"))
    stage.eventually(
        lambda: simulator.subscribed() == {"SPY", "SMALL", "LARGE"}, what=simulator.subscribed
    )
    shown = stage.beside(service, "status").stdout
    assert "not subscribed, the feed allows no more: MID" in shown


def test_a_source_that_is_absent_is_waited_for_and_one_that_fails_keeps_the_last(
    stage: Any,
) -> None:
    simulator, file = stage.simulator(), stage.folder() / "positions.json"
    service = with_file(stage, simulator, file).wait_ready()
    status = when(service, lambda s: s["state"] == "degraded")
    assert f"there is no file {file}" in str(status["reasons"])
    hold(file, ("AAPL", "1", "1"), ("A/B/C D", "1", "1"))
    status = when(service, lambda s: s["state"] == "running")
    assert status["positions"]["held"] == 2
    assert list(status["positions"]["problems"]) == ["A/B/C D"]
    assert sources(service) == {"AAPL": ["positions"]}
    file.write_text('{"positions": [')
    status = when(service, lambda s: s["state"] == "degraded")
    assert service.ready() == (True, [])
    assert status["positions"]["held"] == 2
    assert sources(service) == {"AAPL": ["positions"]}
    assert "positions are out of date" in stage.beside(service, "status").stdout
    assert service.end() == 0
