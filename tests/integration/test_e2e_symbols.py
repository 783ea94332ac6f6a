"""Symbols that the feed limits, refuses, or leaves out; for both drivers side by side."""

from __future__ import annotations

from typing import Any

import attrs

DRIVERS = ["websockets", "alpaca-py"]
SUBSCRIPTIONS = "/api/v1/market-data/subscriptions"
T0 = 1_763_653_904_208_912_345


@attrs.frozen
class Side:
    simulator: Any
    service: Any
    listener: Any


def both(stage: Any, symbols: str, **config: Any) -> list[Side]:
    """A service of each driver, started together, each at a simulator of its own."""
    sides = []
    for driver in DRIVERS:
        simulator, valkey = stage.simulator(**config), stage.valkey()
        listener = stage.listener(valkey)
        service = stage.service(
            simulator, valkey, MDSERVICE_DRIVER=driver, MDSERVICE_SYMBOLS=symbols
        )
        sides.append(Side(simulator, service, listener))
    return sides


def test_at_start_as_many_symbols_as_the_limit_allows_are_subscribed_and_the_rest_named(
    stage: Any,
) -> None:
    wanted = {"AAPL", "MSFT", "IBM", "ORCL", "NVDA"}

    def body(side: Side) -> None:
        side.service.wait_ready()
        assert len(side.simulator.subscribed()) == 3
        for symbol in wanted - side.simulator.subscribed():
            assert f'"{symbol}"' in side.service.http.get("/status").text
            stage.eventually(lambda symbol=symbol: symbol in side.service.stderr, what=symbol)
            assert symbol in stage.beside(side.service, "status").stdout

    stage.together(body, both(stage, ",".join(sorted(wanted)), symbol_limit=3))


def test_beyond_the_symbol_limit_a_request_is_refused_as_a_whole(stage: Any) -> None:
    def body(side: Side) -> None:
        simulator, service = side.simulator, side.service.wait_ready()
        refused = service.post("subscribe", status=409, json={"symbols": ["IBM", "ORCL"]})
        assert "limit" in str(refused).lower()
        assert simulator.subscribed() == {"AAPL", "MSFT"}
        assert set(service.get(SUBSCRIPTIONS)["symbols"]) == {"AAPL", "MSFT"}
        assert service.ready() == (True, [])

        service.subscribe("IBM")
        service.post("subscribe", status=409, params={"symbol": "ORCL"})
        assert simulator.subscribed() == {"AAPL", "MSFT", "IBM"}
        simulator.quotes(("IBM", 1, 2, T0))
        side.listener.wait("IBM", 1)
        command = stage.beside(service, "subscribe", "ORCL")
        assert command.process.returncode == 1, command.said
        assert "limit" in command.stderr.lower()
        # What was refused is not asked for again on reconnecting.
        simulator.drop()
        service.until(lambda s: s["feed"]["reconnects"] == 1)
        service.wait_ready()
        assert simulator.subscribed() == {"AAPL", "MSFT", "IBM"}

    stage.together(body, both(stage, "AAPL,MSFT", symbol_limit=3))


def test_a_symbol_that_is_invalid_syntax_is_found_and_the_others_are_subscribed(
    stage: Any,
) -> None:
    def body(side: Side) -> None:
        side.service.wait_ready()
        assert side.simulator.subscribed() == {"AAPL", "MSFT", "IBM"}
        assert '"BAD"' in side.service.http.get("/status").text
        side.service.post("subscribe", status=409, json={"symbols": ["BAD", "ORCL"]})
        assert side.simulator.subscribed() == {"AAPL", "MSFT", "IBM"}

    stage.together(body, both(stage, "AAPL,BAD,MSFT,IBM", invalid_symbols={"BAD"}))


def test_symbols_that_the_feed_leaves_out_without_a_word_are_noticed(stage: Any) -> None:
    def body(side: Side) -> None:
        side.service.wait_answers()
        stage.eventually(lambda: side.simulator.subscribed() == {"AAPL"}, what="AAPL")
        stage.eventually(
            lambda: '"GONE"' in side.service.http.get("/status").text,
            what=side.service.status,
        )
        assert "GONE" in stage.beside(side.service, "status").stdout

    stage.together(body, both(stage, "AAPL,GONE", ignored_symbols={"GONE"}))


def test_every_symbol_of_the_feed_by_a_star(stage: Any) -> None:
    symbols = [stage.new_symbol() for _ in range(300)]

    def body(side: Side) -> None:
        side.service.wait_ready()
        side.simulator.quotes(*((symbol, 1, 2, T0) for symbol in symbols))
        side.listener.wait(symbols[-1], 1)
        assert {event["symbol"] for event in side.listener.events()} == set(symbols)
        side.service.subscribe("AAPL")
        side.simulator.quotes(("AAPL", 1, 2, T0), (symbols[0], 1, 2, T0 + 1))
        side.listener.wait(symbols[0], 2)
        assert len(side.listener.events("AAPL")) == 1

    stage.together(body, both(stage, "*"))
