"""Limits and the circuit breaker as a gateway's clients see them: processes, prices by hand."""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import signal
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI

from mdservice.gateway import trading_allowed
from tests.integration.gateway.outside import OPEN_CLOCK, Broker, Outside, held

D = Decimal
RISK = "/api/v1/risk"
CLOSED = {"state": "closed", "rule": None, "subject": None, "value": None, "at": None}


def opened(stage: Any, *rows: dict[str, Any], valkey: Any = None, **env: str) -> Outside:
    """A gateway whose broker has these positions."""
    broker = Broker()
    broker.answers["/v2/clock"] = OPEN_CLOCK
    broker.answers["/v2/positions"] = list(rows)
    return Outside(stage, valkey or stage.valkey(), broker=broker, **env).ready()


def risk(at: Outside) -> dict[str, Any]:
    return at.get(RISK)


def seeing(at: Outside) -> dict[str, Any]:
    """The answer once nothing is blind."""
    found: dict[str, Any] = at.stage.eventually(
        lambda: (found := risk(at)) and not found["blind"] and found, what=lambda: risk(at)
    )
    return found


def tripped(at: Outside) -> dict[str, Any]:
    """The breaker once it is tripped."""
    found: dict[str, Any] = at.stage.eventually(
        lambda: (found := risk(at)["breaker"])["state"] == "tripped" and found,
        what=lambda: risk(at),
    )
    return found


def reset(at: Outside, status: int, **options: Any) -> None:
    """Ask for the reset until it is answered so."""
    at.stage.eventually(
        lambda: at.http.post(f"{RISK}/reset", **options).status_code == status,
        what=lambda: risk(at),
    )


def check(at: Outside, side: str, qty: str, symbol: str = "AAPL", **more: Any) -> dict[str, Any]:
    answer = at.http.post(
        f"{RISK}/check", json={"symbol": symbol, "side": side, "qty": qty, **more}
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found.keys() == {"allowed", "reasons"}
    assert found["allowed"] is (not found["reasons"])
    return found


def breaker_key(valkey: Any) -> tuple[Any, int]:
    with valkey.client() as client:
        content = client.get("risk:breaker")
        return content and json.loads(content, parse_float=Decimal), client.ttl("risk:breaker")


# ---- Rules.

MEASURES = {
    "AAPL pnl > 100000": ("AAPL", 200, D("0.002")),
    "AAPL pct > 1000": ("AAPL", 20, D("0.02")),
    "AAPL price > 1000": ("AAPL", 120, D("0.12")),
    "AAPL qty > 100": ("AAPL", 10, D("0.1")),
    "AAPL value > 100000": ("AAPL", 1200, D("0.012")),
    "MSFT value > 4000": ("MSFT", 1000, D("0.25")),
    "total pnl < -10000": ("total", 200, 0),
    "total exposure > 22000": ("total", 2200, D("0.1")),
}


def test_every_measure_is_judged_and_none_of_it_trips(stage: Any) -> None:
    rows = held("AAPL", "10", "100"), held("MSFT", "-5", "200")
    at = opened(stage, *rows, MDSERVICE_LIMITS="; ".join((*MEASURES, "* stale")))
    at.quote("AAPL", "119", "121", "120")
    at.quote("MSFT", "199", "201", "200")
    found = seeing(at)
    limits = {one["rule"]: one for one in found["limits"]}
    for rule, (subject, value, used) in MEASURES.items():
        assert limits[rule]["subject"] == subject
        assert (limits[rule]["value"], limits[rule]["used"]) == (value, used), rule
    assert found["breaker"] == CLOSED


def test_a_rule_that_is_none_is_a_configuration_error(stage: Any) -> None:
    def refused(rules: str) -> None:
        program = stage.program(
            "gateway", MDSERVICE_REDIS_URL="redis://127.0.0.1:1", MDSERVICE_LIMITS=rules
        )
        assert program.code() == 78, program.said
        assert "limits" in program.stderr.lower()

    stage.together(refused, ["AAPL stale > 1", "AAPL exposure > 1", "AAPL pnl < -1; nothing"])


def test_an_alert_trips_only_where_it_says_so(stage: Any) -> None:
    at = opened(
        stage, held("AAPL", "10", "100"), MDSERVICE_ALERTS="AAPL pnl < -50; AAPL pnl < -500 trip"
    )
    with at.valkey.client() as client:
        heard = client.pubsub()
        heard.subscribe("pnl.alert", "risk.breaker")
        for _ in range(2):
            assert heard.get_message(timeout=20)["type"] == "subscribe"
        at.quote("AAPL", "99", "101", "100")
        at.until("AAPL", current_price=100)
        at.quote("AAPL", "89", "91", "90")
        first = at.stage.eventually(lambda: heard.get_message(timeout=0.1))
        assert first["channel"] == b"pnl.alert"
        assert risk(at)["breaker"] == CLOSED
        at.quote("AAPL", "39", "41", "40")
        assert tripped(at)["rule"].startswith("AAPL pnl < -500")
        channels = set()
        while channels != {b"pnl.alert", b"risk.breaker"}:
            channels.add(at.stage.eventually(lambda: heard.get_message(timeout=0.1))["channel"])
        heard.close()


def test_a_price_that_cannot_be_used_trips_nothing_and_blinds(stage: Any) -> None:
    symbols = ("OLD", "ASK", "BID", "WIDE")
    rows = [held(symbol, "10", "100") for symbol in symbols]
    at = opened(stage, *rows, MDSERVICE_LIMITS="* price < 50")
    for symbol in symbols[1:]:
        at.quote(symbol, "99", "101", "100")
        at.until(symbol, status="live")
    at.quote("OLD", "10", "10", "10", age_s=3600)
    at.quote("ASK", "10", "0", "10")
    at.quote("BID", "0", "10", "10")
    at.quote("WIDE", "5", "15", "10")
    at.stage.eventually(
        lambda: all(symbol in str(risk(at)["blind"]) for symbol in symbols), what=lambda: risk(at)
    )
    assert risk(at)["breaker"] == CLOSED
    assert check(at, "buy", "1", "WIDE")["allowed"] is False
    for symbol in symbols:
        at.quote(symbol, "60", "62", "61")
    assert seeing(at)["breaker"] == CLOSED
    assert check(at, "buy", "1", "WIDE") == {"allowed": True, "reasons": []}


def test_without_limits_everything_is_allowed(stage: Any) -> None:
    at = opened(stage, held("AAPL", "10", "100"))
    assert risk(at) == {"breaker": CLOSED, "limits": [], "blind": []}
    assert check(at, "buy", "1000000", "NVDA") == {"allowed": True, "reasons": []}


# ---- The breaker.


def test_the_breaker_stands_in_redis_and_survives_a_restart(stage: Any) -> None:
    valkey = stage.valkey()
    env = {"MDSERVICE_LIMITS": "AAPL price < 50; total exposure > 100000"}
    at = opened(stage, held("AAPL", "10", "100"), valkey=valkey, **env)
    at.quote("AAPL", "99", "101", "100")
    seeing(at)
    with valkey.client() as client:
        heard = client.pubsub()
        heard.subscribe("risk.breaker")
        assert heard.get_message(timeout=20)["type"] == "subscribe"
        at.quote("AAPL", "39", "41", "40")
        breaker = tripped(at)
        assert (breaker["state"], breaker["rule"]) == ("tripped", "AAPL price < 50")
        assert (breaker["subject"], breaker["value"]) == ("AAPL", 40)
        assert breaker["at"].endswith("Z")
        message = at.stage.eventually(lambda: heard.get_message(timeout=0.1))
        assert stage.exact(message["data"]) == breaker
        assert breaker_key(valkey) == (breaker, -1)
        at.quote("AAPL", "38", "40", "39")
        at.until("AAPL", current_price=39)
        assert at.http.post(f"{RISK}/reset").status_code == 409, "its rule still holds"
        at.program.end(signal.SIGKILL)
        again = opened(stage, held("AAPL", "10", "100"), valkey=valkey, **env)
        assert tripped(again) == breaker
        again.quote("AAPL", "99", "101", "100")
        again.until("AAPL", current_price=100)
        seeing(again)
        assert risk(again)["breaker"] == breaker
        reset(again, 200)
        assert risk(again)["breaker"]["state"] == "closed"
        assert breaker_key(valkey)[0]["state"] == "closed"
        assert breaker_key(valkey)[1] == -1
        message = at.stage.eventually(lambda: heard.get_message(timeout=0.1))
        assert stage.exact(message["data"])["state"] == "closed", "each change is published once"
        heard.close()


def test_an_order_is_judged_on_the_position_as_it_would_be(stage: Any) -> None:
    rules = "AAPL qty > 20; AAPL qty < -20; * value > 5000; total exposure > 6000"
    at = opened(stage, held("AAPL", "10", "100"), MDSERVICE_LIMITS=rules)
    at.quote("AAPL", "99", "101", "100")
    at.quote("NVDA", "999", "1001", "1000", publish=False)
    seeing(at)
    assert check(at, "buy", "10")["allowed"]
    assert "AAPL qty > 20" in str(check(at, "buy", "11")["reasons"])
    assert check(at, "sell", "30", price="100")["allowed"], "20 short"
    assert not check(at, "sell", "31", price="100")["allowed"], "21 short"
    assert check(at, "buy", "10", price="200")["allowed"]
    assert check(at, "buy", "5", "NVDA")["allowed"]
    assert not check(at, "buy", "6", "NVDA")["allowed"]
    assert not check(at, "buy", "1", "UNKNOWN")["allowed"]


def test_while_tripped_only_what_reduces_a_position_that_is_too_large_is_allowed(
    stage: Any,
) -> None:
    rows = held("AAPL", "10", "100"), held("MSFT", "1", "100")
    at = opened(stage, *rows, MDSERVICE_LIMITS="AAPL qty > 5; MSFT price < 50")
    for symbol in ("AAPL", "MSFT"):
        at.quote(symbol, "99", "101", "100")
    assert tripped(at)["rule"] == "AAPL qty > 5"
    seeing(at)
    assert check(at, "sell", "4")["allowed"]
    assert check(at, "sell", "10")["allowed"]
    for side, qty, symbol in (("buy", "1", "AAPL"), ("sell", "1", "MSFT"), ("buy", "1", "NVDA")):
        assert not check(at, side, qty, symbol)["allowed"], (side, symbol)


def test_over_tcp_a_reset_needs_the_token(stage: Any) -> None:
    token = "a-token-of-some-length"
    broker = Broker()
    at = Outside(stage, stage.valkey(), broker=broker, MDSERVICE_API_TOKEN=token)

    def answers() -> bool:
        try:
            return at.http.post(f"{RISK}/reset").status_code == 401
        except httpx.TransportError:
            return False

    stage.eventually(answers, within=30, what=lambda: at.program.said)
    wrong = {"Authorization": "Bearer wrong"}
    assert at.http.post(f"{RISK}/reset", headers=wrong).status_code == 401
    reset(at, 200, headers={"Authorization": f"Bearer {token}"})


# ---- Programs that place orders.


def allowed(at: Outside, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Asks another program, which has ``trading_allowed``, for the status of an order."""
    folder = at.stage.folder()
    monkeypatch.chdir(folder)
    for name in ("ALPACA_API_KEY", "ALPACA_SECRET_KEY", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MDSERVICE_GATEWAY_HTTP", f"127.0.0.1:{at.port}")
    app = FastAPI()

    @app.post("/orders", dependencies=[Depends(trading_allowed)])
    async def place() -> str:
        return "placed"

    async def ask() -> int:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://orders") as client:
            return (await client.post("/orders")).status_code

    return lambda status: at.stage.eventually(
        lambda: anyio.run(ask) == status, what=lambda: f"{status}: {anyio.run(ask)}"
    )


def test_trading_is_allowed_only_while_the_limits_see_and_hold(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = opened(stage, held("AAPL", "10", "100"), MDSERVICE_LIMITS="AAPL price < 50")
    trading = allowed(at, monkeypatch)
    trading(503)  # blind
    at.quote("AAPL", "99", "101", "100")
    trading(200)
    at.quote("AAPL", "39", "41", "40")
    trading(423)
    at.quote("AAPL", "99", "101", "100")
    reset(at, 200)
    trading(200)
    at.broker.answers["/v2/positions"] = 500
    trading(503)
    at.broker.answers["/v2/positions"] = [held("AAPL", "10", "100")]
    trading(200)
    at.valkey.kill()
    trading(503)
    at.valkey.start()
    at.quote("AAPL", "99", "101", "100")
    trading(200)
    at.program.end(signal.SIGKILL)
    trading(503)


# ---- The webhook.


class Hook:
    """Takes what is posted; answers with the statuses it is given, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.received: queue.Queue[tuple[Any, bytes]] = queue.Queue()
        answers = iter(statuses)
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = next(answers, 200)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()
                received.put((self.headers, body))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_changes_of_the_breaker_go_to_the_webhook_until_it_takes_them(stage: Any) -> None:
    hook, token = Hook(503), "a-token-of-some-length"
    stage.defer(hook.close)
    at = opened(
        stage,
        held("AAPL", "10", "100"),
        MDSERVICE_LIMITS="AAPL qty > 5",
        MDSERVICE_ALERT_WEBHOOK=hook.url,
        MDSERVICE_API_TOKEN=token,
    )
    tripped(at)
    bodies = [hook.received.get(timeout=60) for _ in range(2)]
    assert len({body for _, body in bodies}) == 1
    for headers, body in bodies:
        assert headers["content-type"].startswith("application/json")
        found = json.loads(body)
        assert (found["state"], found["rule"]) == ("tripped", "AAPL qty > 5")
        digest = hmac.new(token.encode(), body, hashlib.sha256).hexdigest()
        assert headers["X-Mdservice-Signature"] == f"sha256={digest}"
    assert hook.url not in at.program.said


def test_what_the_webhook_refuses_is_not_sent_again(stage: Any) -> None:
    hook = Hook(400)
    stage.defer(hook.close)
    at = opened(
        stage,
        held("AAPL", "10", "100"),
        MDSERVICE_LIMITS="AAPL qty > 5",
        MDSERVICE_ALERT_WEBHOOK=hook.url,
    )
    tripped(at)
    headers, body = hook.received.get(timeout=60)
    assert headers["X-Mdservice-Signature"] is None, "there is no token"
    first = json.loads(body)
    at.hold(held("AAPL", "1", "100"))
    reset(at, 200)
    second = json.loads(hook.received.get(timeout=60)[1])
    assert (first["state"], second["state"]) == ("tripped", "closed")
