"""What relay clients see of the feed's limits and outages, and when the service lets go."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from websockets.exceptions import InvalidStatus

from tests.integration.conftest import eventually, patient
from tests.integration.relay.relay_client import (
    CONNECTED,
    PATHS,
    House,
    RelayClient,
    comparable,
    quote,
    trade,
)

KEPT_S = 30
_ids = itertools.count(1)


@attrs.define
class Early:
    """What was begun long before it is looked at.

    Attributes:
        house: Of all tests here.
        silent: A client that never logs in.
        left: Subscribed by a client that has left.
        taken: Likewise, and by another client a moment later.
        at_s: When the first client left.
    """

    house: House
    silent: RelayClient
    left: str
    taken: str
    at_s: float


@pytest.fixture(scope="module")
def early(module_stage: Any) -> Iterator[Early]:
    house = House(module_stage)
    silent = RelayClient(house.service.url + PATHS["stocks"], login=None)
    left, taken = house.symbol(), house.symbol()
    first = RelayClient(house.service.url + PATHS["stocks"]).ready()
    first.subscribe(trades=[left, taken])
    house.until_wanted("stocks", ("trades", left), ("trades", taken))
    first.close()
    at_s = time.monotonic()
    other = RelayClient(house.service.url + PATHS["stocks"]).ready()
    other.subscribe(trades=[taken])
    yield Early(house, silent, left, taken, at_s)
    silent.close()
    other.close()


@pytest.fixture
def house(early: Early) -> Iterator[House]:
    yield early.house
    early.house.let_go()


@pytest.fixture
def outage(house: House) -> Iterator[Any]:
    """Break the stocks' connection; called again, let it come back."""

    def change(*, ends: bool = False) -> None:
        house.alpaca.refusing = not ends
        if not ends:
            house.alpaca.cut("stocks")
            house.service.program.until(lambda s: not s["feeds"]["stocks"]["connected"])

    yield change
    house.alpaca.refusing = False


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_clients_stay_and_come_and_subscribe_in_an_outage(
    house: House, outage: Any, encoding: str
) -> None:
    one, two, three = (house.symbol() for _ in range(3))
    client = house.subscriber("stocks", one, "trades", encoding=encoding)
    outage()
    assert client.subscribe(trades=[two])["trades"] == [one, two]
    newcomer = house.client(encoding=encoding)
    assert newcomer.subscribe(trades=[three])["trades"] == [three]
    assert newcomer.subscribe(quotes=[one])["quotes"] == [one]
    assert client.socket.ping().wait(patient(10))
    outage(ends=True)
    house.until_wanted("stocks", ("trades", one), ("trades", two), ("trades", three),
                       ("quotes", one))  # fmt: skip
    sent = {symbol: trade(symbol, next(_ids)) for symbol in (one, two, three)}
    priced = quote(one)
    for message in (*sent.values(), priced):
        house.keep(message)
    house.alpaca.send("stocks", *sent.values(), priced)
    assert client.wait("t", one, 1) == [comparable(sent[one])]
    assert client.wait("t", two, 1) == [comparable(sent[two])]
    assert newcomer.wait("t", three, 1) == [comparable(sent[three])]
    newcomer.wait("q", one, 1)
    for each in (client, newcomer):
        assert each.open
        assert not [m for m in each.said() if m["T"] == "error"]


def test_the_latest_quote_comes_at_once_in_an_outage(house: House, outage: Any) -> None:
    symbol = house.symbol()
    client = house.subscriber("stocks", symbol, "quotes")
    house.alpaca.send("stocks", latest := quote(symbol, 15.5))
    client.wait("q", symbol, 1)
    outage()
    newcomer = house.client(encoding="msgpack")
    newcomer.subscribe(quotes=[symbol])
    assert newcomer.wait("q", symbol, 1) == [comparable(latest)]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_what_a_repair_brings_comes_in_order_with_the_rest(
    house: House, outage: Any, encoding: str
) -> None:
    symbol = house.symbol()
    client = house.subscriber("stocks", symbol, "quotes", "trades", encoding=encoding)
    quotes, trades = [], []

    def make(number: int) -> list[dict[str, Any]]:
        quotes.append(quote(symbol, number))
        trades.append(trade(symbol, 1_000 + number, number))
        house.keep(quotes[-1])
        house.keep(trades[-1])
        return [quotes[-1], trades[-1]]

    house.alpaca.send("stocks", *make(1))
    client.wait("t", symbol, 1)
    outage()
    for number in (2, 3, 4):
        make(number)
    outage(ends=True)
    house.until_wanted("stocks", ("quotes", symbol), ("trades", symbol))
    house.alpaca.send("stocks", *make(5))
    assert client.wait("q", symbol, 5) == [comparable(m) for m in quotes]
    assert client.wait("t", symbol, 5) == [comparable(m) for m in trades]
    house.alpaca.send("stocks", *make(6))
    assert client.wait("q", symbol, 6)[5:] == [comparable(quotes[-1])]
    assert client.wait("t", symbol, 6)[5:] == [comparable(trades[-1])]


def test_a_request_beyond_the_plans_limit_gets_405(stage: Any) -> None:
    house = House(stage, max_pairs=5)
    try:
        client, other = house.client(), house.client()
        symbols = [house.symbol() for _ in range(5)]
        assert client.subscribe(quotes=symbols)["quotes"] == symbols
        house.until_wanted("stocks", *(("quotes", symbol) for symbol in symbols))
        for each in (client, other):
            each.send(action="subscribe", quotes=[house.symbol()])
            each.refused(405)
            assert each.open
        assert set(client.unsubscribe(quotes=symbols[4:])["quotes"]) == set(symbols[:4])
        assert other.subscribe(quotes=symbols[:1])["quotes"] == symbols[:1]
        sent = quote(symbols[0])
        house.alpaca.send("stocks", sent)
        for each in (client, other):
            assert each.wait("q", symbols[0], 1) == [comparable(sent)]
    finally:
        house.let_go()


def test_the_feed_is_still_read_by_others_when_a_client_leaves(house: House) -> None:
    symbol = house.symbol()
    client = house.subscriber("stocks", symbol, "trades")
    other = house.subscriber("stocks", symbol, "trades")
    client.close()
    house.alpaca.send("stocks", sent := trade(symbol, next(_ids)))
    assert other.wait("t", symbol, 1) == [comparable(sent)]
    assert house.service.sources(symbol) == ["relay"]


def test_an_upgrade_while_it_drains_gets_503(stage: Any) -> None:
    house = House(stage)
    symbol = house.symbol()
    client = house.subscriber("stocks", symbol, "trades")
    house.valkey.stop_answering()
    answers: list[int | str] = []
    try:
        house.alpaca.send("stocks", *(trade(symbol, next(_ids)) for _ in range(1_000)))
        house.service.program.process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                RelayClient(house.service.url + PATHS["stocks"], login=None).close()
            except InvalidStatus as status:
                answers.append(status.response.status_code)
            except (OSError, EOFError) as error:
                answers.append(type(error).__name__)
            return 503 in answers or "ConnectionRefusedError" in answers

        eventually(refused, what=lambda: answers)
    finally:
        house.valkey.answer_again()
    assert answers[-1] == 503, answers
    assert house.service.program.code() == 0
    eventually(lambda: not client.open)
    house.let_go()


def test_an_upgrade_while_it_starts_gets_503_or_is_refused(stage: Any) -> None:
    house = House(stage)
    house.service.program.end()
    program = stage.program("run", folder=house.service.folder, **house.service.env)
    answers: list[int | str] = []

    def served() -> bool:
        assert program.process.poll() is None, program.said
        try:
            client = RelayClient(house.service.url + PATHS["stocks"])
        except InvalidStatus as status:
            answers.append(status.response.status_code)
        except (OSError, EOFError) as error:
            answers.append(type(error).__name__)
        else:
            client.ready().close()
            return True
        return False

    eventually(served, within=20, what=lambda: answers)
    assert set(answers) <= {503, "ConnectionRefusedError"}


# At the end, what takes its time.


def test_who_does_not_log_in_gets_404_after_ten_seconds(early: Early) -> None:
    assert early.silent.answer(0) == CONNECTED
    early.silent.until(lambda: early.silent.said()[1:], within=15)
    early.silent.refused(404)
    early.silent.until(lambda: not early.silent.open)


def test_what_no_client_wants_any_more_is_unsubscribed_after_30_s(early: Early) -> None:
    house = early.house
    while (elapsed_s := time.monotonic() - early.at_s) < KEPT_S - 2:
        assert house.wanted("stocks", "trades", early.left), elapsed_s
        time.sleep(0.2)
    eventually(lambda: not house.wanted("stocks", "trades", early.left), within=15)
    eventually(lambda: house.service.sources(early.left) == [])
    assert time.monotonic() - early.at_s >= KEPT_S - 2
    assert house.wanted("stocks", "trades", early.taken)
    assert house.service.sources(early.taken) == ["relay"]
