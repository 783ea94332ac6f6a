"""Clients that do not read: what becomes of their records, and that others do not notice."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import eventually, patient
from tests.integration.relay.relay_client import House, RelayClient, at, comparable, quote, trade

BOUND = 10_000
FRAME = 500
MANY = 17_000
"""Three times so many records are more than the bound and what a connection buffers."""
_ids = itertools.count(1)


@pytest.fixture(scope="module")
def shared(module_stage: Any) -> House:
    return House(module_stage)


@pytest.fixture
def house(shared: House) -> Iterator[House]:
    yield shared
    shared.let_go()


def sleeper(house: House, feed: str = "stocks", **channels: list[str]) -> RelayClient:
    """A client that subscribes and then does not read, with hardly a buffer of its own."""
    host, _, port = house.service.address.partition(":")
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    line.connect((host, int(port)))
    client = house.client(feed, ready=False, reading=False, sock=line, max_queue=1)
    # Read what comes before the records, and no more.
    client.login("key", "secret")
    client.send(action="subscribe", **channels)
    while not client.messages or client.messages[-1]["T"] != "subscription":
        client._take(client.socket.recv(timeout=patient(10)))
    return client


def shown(house: House, slow: bool) -> dict[str, Any]:
    """The status of the client with the most, or the least, that waits for it."""
    clients = sorted(house.service.status["clients"], key=lambda c: c["backlog"])
    found: dict[str, Any] = clients[-1 if slow else 0]
    return found


def send(
    house: House,
    messages: list[dict[str, Any]],
    reader: RelayClient,
    *,
    feed: str = "stocks",
    frame: int = FRAME,
) -> None:
    """Send what the reader gets too, no faster than it reads."""
    had = len(reader.messages)
    for start in range(0, len(messages), frame):
        house.alpaca.send(feed, *messages[start : start + frame])
        reader.until(lambda n=start: len(reader.messages) - had > n - 4 * frame)
    reader.until(lambda: len(reader.messages) - had >= len(messages))


def test_a_burst_below_the_bound_is_not_touched(house: House) -> None:
    symbol = house.symbol()
    client = sleeper(house, quotes=[symbol], trades=[symbol])
    house.until_wanted("stocks", ("quotes", symbol), ("trades", symbol))
    reader = house.client()
    reader.subscribe(quotes=[symbol], trades=[symbol])
    sent = [
        quote(symbol, number) if number % 2 else trade(symbol, next(_ids))
        for number in range(1, BOUND - 500)
    ]
    send(house, sent, reader)
    client.read()
    client.until(lambda: len(client.messages) >= 3 + len(sent))
    for kind in "qt":
        assert client.heard(kind) == [comparable(m) for m in sent if m["T"] == kind]


def test_a_slow_clients_quotes_are_conflated_and_others_do_not_notice(house: House) -> None:
    symbols = [house.symbol() for _ in range(3)]
    client = sleeper(house, quotes=symbols)
    reader = house.client(encoding="msgpack")
    reader.subscribe(quotes=symbols)
    house.until_wanted("stocks", *(("quotes", symbol) for symbol in symbols))
    sent = [quote(symbol, number) for number in range(1, MANY + 1) for symbol in symbols]
    send(house, sent, reader)
    for symbol in symbols:
        assert reader.heard("q", symbol) == [comparable(m) for m in sent if m["S"] == symbol]
    assert shown(house, slow=True)["conflated"] > 0
    assert shown(house, slow=True)["backlog"] <= BOUND + len(symbols)
    assert house.service.metrics()["mdservice_relay_conflated_total"] > 0
    client.read()
    last = dict.fromkeys(symbols, MANY)

    def newest() -> dict[str, Any]:
        return {m["S"]: m["bp"] for m in list(client.messages) if m["T"] == "q"}

    client.until(lambda: newest() == last, within=20)
    for symbol in symbols:
        bids = [m["bp"] for m in client.heard("q", symbol)]
        assert bids == sorted(set(bids))
        assert len(bids) < MANY
    # It has caught up: nothing is conflated any more.
    had = len(client.messages)
    again = [quote(symbol, MANY + number) for number in range(1, 101) for symbol in symbols]
    send(house, again, reader)
    client.until(lambda: len(client.messages) >= had + len(again))
    for symbol in symbols:
        mine = [comparable(m) for m in again if m["S"] == symbol]
        assert client.heard("q", symbol)[-len(mine) :] == mine
    assert client.open


def test_four_mebibytes_make_a_client_slow_too(house: House) -> None:
    symbol = house.symbol()
    client = sleeper(house, quotes=[symbol])
    reader = house.client(encoding="msgpack")
    reader.subscribe(quotes=[symbol])
    house.until_wanted("stocks", ("quotes", symbol))
    sent = [quote(symbol, number, later="x" * 20_000) for number in range(1, 1_001)]
    send(house, sent, reader, frame=20)
    assert shown(house, slow=True)["conflated"] > 0
    client.read()
    client.until(lambda: client.messages[-1].get("bp") == 1_000)
    assert len(client.heard("q")) < 1_000
    assert client.open


def test_a_slow_client_still_ends_with_the_right_book(house: House) -> None:
    symbol = house.symbol("crypto")
    client = sleeper(house, "crypto", orderbooks=[symbol])
    reader = house.client("crypto", encoding="msgpack")
    reader.subscribe(orderbooks=[symbol])
    house.until_wanted("crypto", ("orderbooks", symbol))
    sent = [book(symbol, 0, r=True), *(book(symbol, number) for number in range(1, MANY))]
    send(house, sent, reader, feed="crypto")
    assert shown(house, slow=True)["conflated"] > 0
    client.read()
    last_ns = comparable(sent[-1])["t"]
    client.until(lambda: comparable(client.messages[-1]).get("t") == last_ns, within=20)
    assert len(client.heard("o")) < len(sent)
    assert levels_after(client) == levels_after(reader)
    assert client.open


def book(symbol: str, number: int, **fields: Any) -> dict[str, Any]:
    """A change of an order book: some levels are new, some are removed."""
    bids = [{"p": 100 - (number * 7 + i) % 50, "s": (number + i) % 5} for i in range(10)]
    asks = [{"p": 101 + (number * 11 + i) % 50, "s": (number + i) % 7} for i in range(10)]
    return {"T": "o", "S": symbol, "t": at(), "b": bids, "a": asks, **fields}


def levels_after(client: RelayClient) -> dict[str, dict[float, float]]:
    """The book of a client that applied everything that it got."""
    sides: dict[str, dict[float, float]] = {"b": {}, "a": {}}
    for message in client.heard("o"):
        for side, levels in sides.items():
            if message.get("r"):
                levels.clear()
            levels.update((level["p"], level["s"]) for level in message[side])
    return {side: {p: s for p, s in levels.items() if s} for side, levels in sides.items()}


@pytest.mark.parametrize("channel", ["trades", "bars"])
def test_one_that_is_too_many_trades_behind_is_cut(house: House, channel: str) -> None:
    symbol = house.symbol()
    cut = house.service.status["cut"]
    client = sleeper(house, **{channel: [symbol]})
    reader = house.client(encoding="msgpack")
    reader.subscribe(**{channel: [symbol]})
    house.until_wanted("stocks", (channel, symbol))
    bar = {"o": 187.1, "h": 187.3, "l": 187.05, "c": 187.2, "v": 1200, "n": 14, "vw": 187.152512}
    sent = [
        trade(symbol, next(_ids))
        if channel == "trades"
        else {"T": "b", "S": symbol, **bar, "t": f"2026-01-05T00:00:00.{number:09d}Z"}
        for number in range(1, 3 * MANY)
    ]
    send(house, sent, reader)
    kind = channel[0]
    assert reader.heard(kind) == [comparable(m) for m in sent]
    eventually(lambda: house.service.status["cut"] == cut + 1, what=lambda: house.service.status)
    assert house.service.metrics()["mdservice_relay_cut_total"] == cut + 1
    client.read()
    client.until(lambda: not client.open, within=20)
    heard = client.heard(kind)
    assert heard == [comparable(m) for m in sent[: len(heard)]]
    errors = [m for m in client.said() if m["T"] == "error"]
    assert [m["code"] for m in errors] in ([], [407])
    assert reader.open
