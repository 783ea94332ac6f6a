"""Simulator, service, Valkey and an execution gateway on uvicorn, each a process of its own."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import httpx
import pytest

from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote

PNL = "/api/v1/positions/pnl/realtime"
WITHIN_S = 30.0


class Gateway:
    """The execution gateway of the examples, asked over HTTP."""

    def __init__(self, stage: Any, valkey: Any) -> None:
        self.port = stage.free_port()
        self.program = stage.example(
            "execution_gateway.py", str(self.port), MDSERVICE_REDIS_URL=valkey.url
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self._stage = stage
        stage.eventually(self._answers, within=WITHIN_S, what=lambda: self.program.said)

    def _answers(self) -> bool:
        assert self.program.process.poll() is None, self.program.said
        try:
            return self.http.get("/api/v1/positions").status_code == 200
        except httpx.TransportError:
            return False

    def fill(self, symbol: str, qty: str, price: str) -> None:
        row = {"symbol": symbol, "qty": qty, "avg_entry_price": price}
        assert self.http.put("/fills", json=row).status_code == 200

    def pnl(self) -> dict[str, Any]:
        answer = self.http.get(PNL)
        assert answer.status_code == 200, answer.text + self.program.said
        return dict(self._stage.exact(answer.text))

    def live(self, symbol: str, newer_than: str = "") -> dict[str, Any]:
        """The answer, once this position is live at a quote newer than that."""

        def look() -> Any:
            found = self.pnl()
            rows = [row for row in found["positions"] if row["symbol"] == symbol]
            good = rows and all(
                row["status"] == "live" and row["last_updated"] > newer_than for row in rows
            )
            return found if good else None

        found: dict[str, Any] = self._stage.eventually(look, within=WITHIN_S, what=self.pnl)
        return found


@pytest.fixture
def open_gateway(stage: Any) -> Iterator[Callable[[Any], Gateway]]:
    """Starts the example's gateway with the prices of a Valkey."""
    with ExitStack() as stack:

        def opened(valkey: Any) -> Gateway:
            gateway = Gateway(stage, valkey)
            stack.callback(gateway.http.close)
            return gateway

        yield opened


@pytest.fixture
def rest(stage: Any) -> Any:
    """The simulator's REST side: a process with some hundred quotes a second."""
    simulator = stage.program("simulate", "--port", "0", "--rate", "200")
    found = stage.eventually(
        lambda: re.search(r"ws://127\.0\.0\.1:(\d+)", simulator.stdout),
        within=WITHIN_S,
        what=lambda: simulator.said,
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{found[1]}", timeout=30) as client:
        yield client


def by_hand(rest: httpx.Client, stage: Any, row: dict[str, Any]) -> tuple[Decimal, Decimal]:
    """The price and the P&L of a row, from the simulator's own record of that quote."""
    asked = {"symbols": row["symbol"], "start": row["last_updated"], "end": row["last_updated"]}
    told = stage.exact(rest.get("/v2/stocks/quotes", params=asked).text)
    (quote,) = told["quotes"][row["symbol"]]
    price = (Decimal(quote["bp"]) + Decimal(quote["ap"])) / 2
    return price, (price - Decimal(row["avg_entry_price"])) * Decimal(row["qty"])


def check(found: dict[str, Any], rest: httpx.Client, stage: Any) -> None:
    total = Decimal(0)
    for row in found["positions"]:
        price, pnl = by_hand(rest, stage, row)
        assert row["current_price"] == price
        assert row["unrealized_pnl"] == pnl
        cost = abs(Decimal(row["qty"])) * Decimal(row["avg_entry_price"])
        assert row["unrealized_pnl_pct"] == round(pnl / cost * 100, 4)
        total += pnl
    assert found["total_unrealized_pnl"] == total
    assert (found["priced"], found["unpriced"]) == (len(found["positions"]), 0)


def test_pnl_follows_a_position_from_its_opening_to_its_end_and_a_restart_of_the_service(
    stage: Any, rest: httpx.Client, open_gateway: Any
) -> None:
    valkey = stage.valkey()
    gateway = open_gateway(valkey)
    env = stage.account(
        str(rest.base_url).replace("http", "ws") + "/v2/iex",
        valkey,
        MDSERVICE_REST_URL=str(rest.base_url),
        MDSERVICE_POSITIONS=f"{gateway.url}/api/v1/positions",
        MDSERVICE_POSITIONS_INTERVAL="0.2",
    )
    service = stage.program("run", **env).wait_ready()
    nothing = {"positions": [], "total_unrealized_pnl": 0, "priced": 0, "unpriced": 0}
    assert gateway.pnl().items() >= nothing.items()

    gateway.fill("AAPL", "10", "150.00")  # opened
    opened = gateway.live("AAPL")
    check(opened, rest, stage)
    sources = service.get("/api/v1/market-data/subscriptions")["sources"]
    assert sources == {"AAPL": ["positions"]}

    gateway.fill("AAPL", "-2.5", "151.255")  # turned, with a fraction
    gateway.fill("MSFT", "3", "0.10")
    gateway.live("MSFT")
    changed = gateway.live("AAPL", opened["positions"][0]["last_updated"])
    assert [row["qty"] for row in changed["positions"]] == [Decimal("-2.5"), 3]
    check(changed, rest, stage)

    service.end(signal.SIGKILL)
    last = max(row["last_updated"] for row in gateway.pnl()["positions"])
    service = stage.program("run", folder=service.folder, **env).wait_ready()
    gateway.live("MSFT", last)
    check(gateway.live("AAPL", last), rest, stage)

    gateway.fill("AAPL", "0", "0")  # closed
    left = gateway.pnl()
    assert [row["symbol"] for row in left["positions"]] == ["MSFT"]
    check(left, rest, stage)
    assert service.status()["positions"]["state"] == "ok"

    service.end()
    gateway.fill("NOTHING", "1", "1")  # no service to ask for its price: listed all the same
    rows = gateway.pnl()["positions"]
    assert [row["status"] for row in rows] == ["live", "unpriced"]
    assert rows[1]["unrealized_pnl"] is None
    assert gateway.program.end() in (0, -signal.SIGTERM)


# ---- `mdservice gateway`


class Alone:
    """``mdservice gateway`` with positions in a file, and prices put into Valkey by hand."""

    def __init__(self, stage: Any, *rows: Any, **env: str) -> None:
        self.stage = stage
        self.valkey = stage.valkey()
        self.folder = stage.folder()
        self.file = self.folder / "positions.json"
        self.hold(*rows)
        self.port = stage.free_port()
        self.program = stage.program(
            "gateway",
            folder=self.folder,
            **{
                "MDSERVICE_REDIS_URL": self.valkey.url,
                "MDSERVICE_GATEWAY_POSITIONS": f"file:{self.file}",
                "MDSERVICE_GATEWAY_HTTP": f"127.0.0.1:{self.port}",
                "MDSERVICE_POSITIONS_INTERVAL": "0.1",
                **env,
            },
        )
        self._seq = 0
        stage.eventually(
            lambda: "p&l    http://" in self.program.stdout,
            within=WITHIN_S,
            what=lambda: self.program.said,
        )

    def hold(self, *rows: Any) -> None:
        """Change the file as an editor does: in one step."""
        new = self.folder / "new.json"
        new.write_text(json.dumps([dict(zip(FIELDS, row, strict=True)) for row in rows]))
        new.replace(self.file)

    def price(self, symbol: str, price: float) -> None:
        self._seq += 1
        now_ns = time.time_ns()
        payload = encode_quote(Quote(symbol, price, price, 1, 1, now_ns, now_ns, self._seq))
        with self.valkey.client() as client:
            client.set(f"price:{symbol}", payload, ex=300)
            client.publish("price.updated", payload)

    def get(self, path: str) -> Any:
        return self.stage.exact(httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30).text)

    def events(self, response: httpx.Response) -> Iterator[tuple[str, Any]]:
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, self.stage.exact(line.removeprefix("data: "))


FIELDS = ("symbol", "qty", "avg_entry_price")


def test_the_gateway_alone_serves_positions_pnl_and_its_stream(stage: Any) -> None:
    alone = Alone(stage, ("AAPL", "10", "150.00"), ("MSFT", "-1", "5"))
    assert alone.get("/health/live") == {"live": True}
    more = {"asset_class": "us_equity", "multiplier": 1}
    more |= {"current_price": None, "lastday_price": None}
    assert alone.get("/api/v1/positions")["positions"] == [
        {"symbol": "AAPL", "qty": 10, "avg_entry_price": 150, **more},
        {"symbol": "MSFT", "qty": -1, "avg_entry_price": 5, **more},
    ]
    alone.price("AAPL", 151)
    url = f"http://127.0.0.1:{alone.port}{PNL}/stream"
    with httpx.stream("GET", url, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = alone.events(response)
        name, whole = next(events)
        assert name == "pnl"
        assert [row["status"] for row in whole["positions"]] == ["live", "unpriced"]
        alone.price("MSFT", 4)
        name, changed = next(events)
        assert name == "pnl.changed"
        assert [row["symbol"] for row in changed["positions"]] == ["MSFT"]
        assert (changed["total_unrealized_pnl"], changed["priced"]) == (11, 2)
        alone.hold(("MSFT", "-2", "5"))
        name, whole = next(events)
        assert name == "pnl"
        assert whole["total_unrealized_pnl"] == 2
        # It ends in time, the stream with it.
        assert alone.program.end() == 0
        assert not [event for event in events if event[0] not in ("pnl", "pnl.changed")]


def test_a_crossed_rule_is_published_once(stage: Any) -> None:
    alone = Alone(
        stage, ("AAPL", "10", "150.00"), MDSERVICE_ALERTS="AAPL pnl < -50; total pct > 10"
    )
    with alone.valkey.client() as client:
        heard = client.pubsub()
        heard.subscribe("pnl.alert")
        assert heard.get_message(timeout=20)["type"] == "subscribe"
        for price in (149, 145.5, 144, 143, 144.9, 146, 144, 170, 171):
            alone.price("AAPL", price)
            stage.eventually(
                lambda price=price: (
                    alone.get(PNL)["positions"][0]["current_price"] == Decimal(str(price))
                )
            )
        alerts = []
        while message := heard.get_message(timeout=20 if len(alerts) < 3 else 1):
            alerts.append(stage.exact(message["data"]))
        heard.close()
    assert [(alert["rule"], alert["symbol"], alert["value"]) for alert in alerts] == [
        ("AAPL pnl < -50", "AAPL", -60),
        ("AAPL pnl < -50", "AAPL", -60),
        ("total pct > 10", "total", Decimal("13.3333")),
    ]
    assert alone.program.stderr.count("pnl_alert") == 3


def test_a_total_that_lacks_a_position_crosses_nothing(stage: Any) -> None:
    rows = ("AAPL", "6", "200"), ("MSFT", "10", "100"), ("ZZZ", "6", "200")
    alone = Alone(
        stage,
        ("IBM", "1", "1"),
        MDSERVICE_ALERTS="total pnl < -500; total pnl < -199; IBM price > 1",
    )
    for symbol, price in (("AAPL", 100), ("MSFT", 200), ("ZZZ", 100)):
        alone.price(symbol, price)
    with alone.valkey.client() as client:
        heard = client.pubsub()
        heard.subscribe("pnl.alert")
        assert heard.get_message(timeout=20)["type"] == "subscribe"
        alone.price("IBM", 2)
        stage.eventually(lambda: heard.get_message(timeout=0.1))
        alone.hold(*rows)
        message = stage.eventually(lambda: heard.get_message(timeout=0.1))
        assert stage.exact(message["data"])["rule"] == "total pnl < -199"
        assert heard.get_message(timeout=0.5) is None
        heard.close()


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"MDSERVICE_POSITIONS": "http://localhost:8002/api/v1/positions"}, "ask itself"),
        ({"MDSERVICE_GATEWAY_POSITIONS": "http://[::1]:8002/x"}, "ask itself"),
        ({"MDSERVICE_POSITIONS": "http://127.1:8002/x"}, "ask itself"),
        ({"MDSERVICE_POSITIONS": "http://0.0.0.0:8002/x"}, "ask itself"),
        ({"MDSERVICE_POSITIONS": "http://[::ffff:127.0.0.1]:8002/x"}, "ask itself"),
        ({"MDSERVICE_ALERTS": "AAPL pnl"}, "setting alerts"),
        ({"MDSERVICE_GATEWAY_HTTP": "0.0.0.0:8002"}, "MDSERVICE_API_TOKEN"),
        ({"MDSERVICE_POSITIONS": "alpaca"}, "ALPACA_API_KEY"),
    ],
)
def test_what_cannot_work_is_exit_78(stage: Any, env: dict[str, str], named: str) -> None:
    program = stage.program("gateway", **{"MDSERVICE_REDIS_URL": "redis://127.0.0.1:1", **env})
    assert program.code() == 78, program.said
    assert named in program.stderr
    assert "Traceback" not in program.stderr


def test_a_port_that_is_taken_is_said(stage: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        program = stage.program("gateway", MDSERVICE_GATEWAY_HTTP=address)
        assert program.code() == 78
        assert f"MDSERVICE_GATEWAY_HTTP: cannot listen at {address}" in program.stderr


def test_the_simulated_desk_has_positions_a_gateway_and_their_pnl(stage: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        service = stage.program("run", MDSERVICE_GATEWAY_HTTP=address).wait_ready()
        said = stage.eventually(lambda: re.search(r"p&l +(http\S+)", service.stdout))
        assert address not in said[1], "that port is taken"

        def all_live() -> Any:
            found = stage.exact(httpx.get(said[1], timeout=30).text)
            rows = found["positions"]
            return found if rows and all(row["status"] == "live" for row in rows) else None

        found = stage.eventually(all_live, within=WITHIN_S)
        pnl = sum(
            (row["current_price"] - row["avg_entry_price"]) * row["qty"]
            for row in found["positions"]
        )
        assert found["total_unrealized_pnl"] == pnl
        status = service.status()
        assert status["positions"]["held"] == len(found["positions"]) == 8
        assert status["positions"]["problems"] == {}
        # Beside it, a gateway that says nothing of positions serves those of the service.
        other = stage.program(
            "gateway", "--gateway-http", f"127.0.0.1:{stage.free_port()}", folder=service.folder
        )
        url = stage.eventually(lambda: re.search(r"p&l +(http\S+)", other.stdout), within=WITHIN_S)
        again = stage.eventually(
            lambda: (
                (found := stage.exact(httpx.get(url[1], timeout=30).text))["priced"] == 8 and found
                if httpx.get(url[1], timeout=30).status_code == 200
                else None
            ),
            within=WITHIN_S,
            what=lambda: other.said,
        )
        assert [row["symbol"] for row in again["positions"]] == [
            row["symbol"] for row in found["positions"]
        ]
        assert other.end() == 0
        assert service.end() == 0


def test_positions_of_the_service_come_whole_and_with_what_is_wrong(stage: Any) -> None:
    folder = stage.folder()
    file, valkey = folder / "p.json", stage.valkey()
    env = {"MDSERVICE_FEED": "simulator", "MDSERVICE_REDIS_URL": valkey.url}
    service = stage.program(
        "run",
        folder=folder,
        MDSERVICE_POSITIONS=f"file:{file}",
        MDSERVICE_POSITIONS_INTERVAL="0.1",
        MDSERVICE_GATEWAY_HTTP="127.0.0.1:0",
        **env,
    ).wait_ready()
    gateway = stage.program(
        "gateway",
        folder=folder,
        MDSERVICE_GATEWAY_HTTP="127.0.0.1:0",
        MDSERVICE_POSITIONS_INTERVAL="0.1",
        **env,
    )
    url = stage.eventually(lambda: re.search(r"p&l +(http\S+)", gateway.stdout), within=WITHIN_S)[1]
    answer = httpx.get(url, timeout=30)
    assert answer.status_code == 503, answer.text
    assert f"there is no file {file}" in answer.text
    rows = [
        {"symbol": "AAPL", "qty": 2, "avg_entry_price": 100, "multiplier": 100},
        {"symbol": "BTCUSDT", "qty": 1, "avg_entry_price": 1, "asset_class": "crypto_perp"},
    ]
    file.write_text(json.dumps(rows))

    def priced() -> Any:
        found = stage.exact(httpx.get(url, timeout=30).text)
        return found.get("priced") and found

    aapl, other = stage.eventually(priced, within=WITHIN_S)["positions"]
    assert aapl["unrealized_pnl"] == 200 * (aapl["current_price"] - 100)
    assert (other["status"], other["problem"]) == (
        "unpriced",
        "is of an asset class without a feed",
    )
    file.unlink()
    missing = f"there is no file {file}"
    stage.eventually(
        lambda: missing in str(stage.exact(httpx.get(url, timeout=30).text)["warnings"])
    )
    assert service.end() == 0


def test_where_no_service_runs_there_are_no_positions_and_a_warning(stage: Any) -> None:
    valkey = stage.valkey()
    gateway = stage.program(
        "gateway", MDSERVICE_GATEWAY_HTTP="127.0.0.1:0", MDSERVICE_REDIS_URL=valkey.url
    )
    url = stage.eventually(lambda: re.search(r"p&l +(http\S+)", gateway.stdout), within=WITHIN_S)[1]
    found = httpx.get(url, timeout=30).json()
    assert found["positions"] == []
    assert "no service answers" in found["warnings"][0]


def test_positions_of_the_real_world_keep_the_simulator_off(stage: Any) -> None:
    service = stage.program("run", MDSERVICE_GATEWAY_POSITIONS="file:real.json")
    assert service.code() == 78
    assert "gateway_positions" in service.stderr


def test_with_symbols_of_ones_own_the_simulated_desk_follows_nothing_else(stage: Any) -> None:
    service = stage.program(
        "run", MDSERVICE_SYMBOLS="AAPL,IBM", MDSERVICE_GATEWAY_HTTP="127.0.0.1:0"
    ).wait_ready()
    told = service.get("/api/v1/market-data/subscriptions")
    assert told["sources"] == {"AAPL": ["settings"], "IBM": ["settings"]}
    said = stage.eventually(lambda: re.search(r"p&l +(http\S+)", service.stdout))
    found = stage.eventually(
        lambda: (found := stage.exact(httpx.get(said[1], timeout=30).text)).get("priced") and found
    )
    assert [row["symbol"] for row in found["positions"]] == ["AAPL"]
