"""The calls of the HTTP API, and what each has to answer at a moment of the simulation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from mdservice.model.payload import encode_quote
from mdservice.model.status import status_to_json
from mdservice.positions.tracker import SOURCE
from tests.simulation.asgi import Answer
from tests.simulation.names import STATIC

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import World

_BASE = "/api/v1/market-data"
_OK, _NOT_FOUND, _BAD, _UNFIT = 200, 404, 422, 503


def _none(_world: World, _life: Life, _answer: Answer) -> Iterator[str]:
    return iter(())


def _as_it_is(answer: Answer) -> tuple[int, Any]:
    return answer.status, answer.json


@attrs.frozen
class Question:
    """A call, and how its answer is judged.

    Attributes:
        answers: What may be answered now: a status and the JSON.
        untruths: What is wrong with it beyond that.
        read: What of an answer is compared with these.
    """

    path: str
    answers: Callable[[World, Life], list[tuple[int, Any]]]
    untruths: Callable[[World, Life, Answer], Iterator[str]] = _none
    query: dict[str, str] = attrs.field(factory=dict)
    method: str = "GET"
    read: Callable[[Answer], tuple[int, Any]] = _as_it_is


CHECKS: list[Callable[[random.Random], Question]] = []


def _question(function: Callable[[random.Random], Question]) -> Callable[..., Question]:
    CHECKS.append(function)
    return function


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


@_question
def _live(_: random.Random) -> Question:
    return Question("/health/live", lambda _w, _l: [(_OK, {"ready": True, "reasons": []})])


@_question
def _ready(_: random.Random) -> Question:
    return Question("/health/ready", _readiness, _readiness_untrue)


def _readiness(_: World, life: Life) -> list[tuple[int, Any]]:
    readiness = life.handle.readiness()
    body = {"ready": readiness.ready, "reasons": list(readiness.reasons)}
    return [(_OK if readiness.ready else _UNFIT, body)]


def _readiness_untrue(world: World, life: Life, answer: Answer) -> Iterator[str]:
    ready, reasons = answer.status == _OK, answer.json["reasons"]
    if ready != (not reasons):
        yield "the reasons do not fit"
    if ready and life.drain_began_s is not None:
        yield "it is stopping"
    elif untruth := world.watch.untruth(life, ready=ready):
        yield untruth


@_question
def _status(_: random.Random) -> Question:
    return Question("/status", _status_now, _status_untrue)


def _status_now(_: World, life: Life) -> list[tuple[int, Any]]:
    return [(_OK, _plain(status_to_json(life.handle.status())))]


def _status_untrue(world: World, life: Life, answer: Answer) -> Iterator[str]:
    told = answer.json
    if told["symbols"] != len(life.handle.subscriptions()):
        yield f"{len(life.handle.subscriptions())} symbols are subscribed"
    if told["counters"]["quotes_accepted"] != life.accepted_count:
        yield f"{life.accepted_count} quotes were accepted"
    if told["state"] == "running" and (untruth := world.watch.untruth(life, ready=True)):
        yield untruth


@_question
def _metrics(_: random.Random) -> Question:
    return Question("/metrics", _counters, read=_read_counters)


def _counters(_: World, life: Life) -> list[tuple[int, Any]]:
    status = life.handle.status()
    counters = {name: float(value) for name, value in attrs.asdict(status.counters).items()}
    return [(_OK, {**counters, "feed_connected": float(status.feed.connected)})]


def _read_counters(answer: Answer) -> tuple[int, Any]:
    told = {}
    for line in answer.body.decode().splitlines():
        name, _, value = line.partition(" ")
        if name.startswith("mdservice_") and name.endswith("_total"):
            told[name.removeprefix("mdservice_").removesuffix("_total")] = float(value)
        elif name == "mdservice_feed_connected":
            told["feed_connected"] = float(value)
    for other in ("other_messages", "redis_command_errors"):
        told.pop(other)
    return answer.status, told


@_question
def _prices(_: random.Random) -> Question:
    return Question(f"{_BASE}/prices", lambda _w, life: [(_OK, _prices_of(life, life.newest))])


@_question
def _some_prices(rng: random.Random) -> Question:
    asked = rng.sample(("AAPL", "MSFT", "TSLA", "NONE"), 2)
    return Question(
        f"{_BASE}/prices",
        lambda _w, life: [(_OK, _prices_of(life, asked))],
        query={"symbols": ",".join(asked)},
    )


def _prices_of(life: Life, symbols: Any) -> dict[str, Any]:
    known = [life.newest[symbol] for symbol in symbols if symbol in life.newest]
    if symbols is life.newest:
        known.sort(key=lambda quote: quote.symbol)
    return {"prices": [msgspec.json.decode(encode_quote(quote)) for quote in known]}


@_question
def _one_price(rng: random.Random) -> Question:
    symbol = rng.choice(("SPY", "KO", "NONE"))

    def answers(_: World, life: Life) -> list[tuple[int, Any]]:
        quote = life.newest.get(symbol)
        if quote is None:
            return [(_NOT_FOUND, None)]
        return [(_OK, msgspec.json.decode(encode_quote(quote)))]

    def read(answer: Answer) -> tuple[int, Any]:
        return answer.status, answer.json if answer.status == _OK else None

    return Question(f"{_BASE}/prices/{symbol}", answers, read=read)


@_question
def _subscriptions(_: random.Random) -> Question:
    return Question(
        f"{_BASE}/subscriptions", lambda _w, life: [(_OK, _sources(life))], _subscriptions_untrue
    )


def _sources(life: Life) -> dict[str, Any]:
    service = life.handle
    sources = service.subscriptions()
    return {
        "symbols": sorted(sources),
        "sources": sources,
        "channels": service.channels(),
        "left_out": service.left_out(),
    }


def _subscriptions_untrue(world: World, life: Life, answer: Answer) -> Iterator[str]:
    wanted, unsure = subscriptions_as_they_should_be(life)
    if set(answer.json["symbols"]) - unsure != wanted - unsure:
        yield f"{sorted(wanted)} are wanted, perhaps {sorted(unsure)}"
    given, left_out = answer.json["channels"], answer.json["left_out"]
    for symbol in given.keys() & left_out.keys():
        if both := set(given[symbol]) & left_out[symbol].keys():
            yield f"{sorted(both)} of {symbol} are given and left out"
    if world.account is None and any(channels != ["quotes"] for channels in given.values()):
        yield "other channels than quotes are given"
    others = world.account is None and any(why.keys() != {"quotes"} for why in left_out.values())
    if others or any(not reason for why in left_out.values() for reason in why.values()):
        yield "it does not say why a symbol is left out"


def subscriptions_as_they_should_be(life: Life) -> tuple[set[str], set[str]]:
    """What is wanted by what was answered, and the symbols that somebody changes just now."""
    wanted = {name for name, times in life.wanted.items() if times and times[-1].end_ns is None}
    # Which symbols those are is checked at the end, once they no longer change.
    held = {symbol for symbol, by in life.handle.subscriptions().items() if SOURCE in by}
    return wanted | held | set(STATIC), {
        symbol for symbol, count in life.changing.items() if count > 0
    }


@_question
def _bad_symbol(rng: random.Random) -> Question:
    return Question(
        f"{_BASE}/{rng.choice(('subscribe', 'unsubscribe'))}",
        lambda _w, _l: [(_BAD, None)],
        _subscriptions_kept,
        query={"symbol": "NOT A SYMBOL"},
        method="POST",
        read=lambda answer: (answer.status, None),
    )


def _subscriptions_kept(_: World, life: Life, answer: Answer) -> Iterator[str]:
    if "NOT A SYMBOL" not in answer.json["detail"]:
        yield "it does not name the symbol"
    wanted, unsure = subscriptions_as_they_should_be(life)
    if set(life.handle.subscriptions()) - unsure != wanted - unsure:
        yield "the subscriptions changed"
