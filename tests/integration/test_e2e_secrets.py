"""A whole service with recognisable secrets: none of them is in anything that comes out."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

KEY, SECRET = "PKRECOGNISABLEKEY", "recognisable-secret-0123456789"
RELAY_KEY, RELAY_SECRET = "recognisable-relay-key", "recognisable:relay-secret"
TOKEN, PASSWORD = "recognisable-token-abcdef", "recognisable/pass:word@e2e"
QUOTED = urllib.parse.quote(PASSWORD, safe="")
MARKET_DATA = "/api/v1/market-data"


@attrs.define
class Gathered:
    """Everything that came out, by where it did."""

    texts: list[tuple[str, str]] = attrs.field(factory=list)

    def add(self, where: str, text: str) -> None:
        self.texts.append((where, text))

    def program(self, name: str, program: Any) -> None:
        self.add(f"{name} stdout", program.stdout)
        self.add(f"{name} stderr", program.stderr)

    def answer(self, answer: httpx.Response) -> None:
        told = f"{answer.request.method} {answer.request.url.raw_path.decode()}"
        self.add(told, answer.text + str(answer.headers))

    def check(self) -> None:
        """Fail with every place and secret that came out there."""
        secrets = {"key": KEY, "secret": SECRET, "token": TOKEN, "password": PASSWORD}
        secrets |= {"relay key": RELAY_KEY, "relay secret": RELAY_SECRET}
        secrets |= {"quoted password": QUOTED, "JSON password": json.dumps(PASSWORD)[1:-1]}
        leaks = {
            f"{name} in {where}": text[max(0, text.find(secret) - 120) :][:240]
            for where, text in self.texts
            for name, secret in secrets.items()
            if secret in text or secret in "".join(text.split())
        }
        assert not leaks, "\n".join(f"{place}: …{text}…" for place, text in leaks.items())


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(p) for p in direct] + [c for p in direct for c in children(int(p))]
    return []


def argv(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def secret_env(simulator: Any, valkey: Any, **more: str) -> dict[str, str]:
    return {
        "ALPACA_API_KEY": KEY,
        "ALPACA_SECRET_KEY": SECRET,
        "MDSERVICE_API_TOKEN": TOKEN,
        "MDSERVICE_REDIS_URL": f"unix://:{QUOTED}@{valkey.path}",
        "MDSERVICE_RELAY_KEYS": f"{RELAY_KEY}:{RELAY_SECRET},other:{RELAY_SECRET}",
        "MDSERVICE_SYMBOLS": "AAPL",
        "MDSERVICE_REST_URL": simulator.rest_url,
        "MDSERVICE_TRADING_URL": simulator.rest_url,
        **more,
    }


def ask_everything(service: Any, tcp: str, gathered: Gathered) -> None:
    """Every call, good and bad, over both listeners."""
    paths = ["/health/live", "/health/ready", "/status", "/metrics", "/openapi.json", "/docs"]
    paths += [f"{MARKET_DATA}/{p}" for p in ("subscriptions", "prices", "prices/AAPL", "prices/NO")]
    paths += [f"{MARKET_DATA}/prices?symbols={SECRET[:4]}!", "/nowhere"]
    posts: list[dict[str, Any]] = [
        {"params": {"symbol": "MSFT"}}, {"params": {"symbol": "B AD"}}, {"content": b"{broken"},
        {"json": {"symbols": ["MSFT", 7]}},
    ]  # fmt: skip
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=tcp) as plain, httpx.Client(base_url=tcp, headers=headers) as known:
        for client in (service.http, plain, known):
            for path in paths:
                gathered.answer(client.get(path))
            for asked in posts:
                gathered.answer(client.post(f"{MARKET_DATA}/subscribe", **asked))
                gathered.answer(client.post(f"{MARKET_DATA}/unsubscribe", **asked))


def ask_by_command(stage: Any, service: Any, env: dict[str, str], gathered: Gathered) -> None:
    """Every command, all at once."""
    commands = ["status", "status --json", "health", "check", "subscribe B%AD"]
    asked = {name: stage.program(*name.split(), folder=service.folder, **env) for name in commands}
    for name, program in asked.items():
        program.code(within=30)
        gathered.program(name, program)


@contextmanager
def relay_clients(address: str, gathered: Gathered) -> Iterator[None]:
    """A program with the right keys that asks badly, and one with a wrong secret."""
    with ExitStack() as stack:
        for secret, known in ((RELAY_SECRET, True), (KEY, False)):
            client = stack.enter_context(connect(f"ws://{address}/v2/iex", proxy=None))
            login = {"action": "auth", "key": RELAY_KEY, "secret": secret}
            for asked in (login, {"action": "subscribe", "quotes": ["AAPL", RELAY_KEY]}, login):
                with contextlib.suppress(ConnectionClosed):
                    gathered.add(f"relay, known: {known}", str(client.recv(10)))
                    client.send(json.dumps(asked))
        yield


def test_no_secret_comes_out_of_a_run_with_troubles(stage: Any) -> None:
    cases = [("websockets", "console"), ("alpaca-py", "json")]
    stage.together(run_with_troubles, cases, stage=stage)


def run_with_troubles(case: tuple[str, str], stage: Any) -> None:
    driver, log_format = case
    simulator, valkey, gathered = stage.simulator(), stage.valkey(), Gathered()
    listener = stage.listener(valkey)
    with valkey.client() as client:
        client.config_set("requirepass", PASSWORD)
    port = stage.free_port()
    env = secret_env(
        simulator, valkey, MDSERVICE_FEED_URL=simulator.url, MDSERVICE_DRIVER=driver,
        MDSERVICE_HTTP=f"127.0.0.1:{port}", MDSERVICE_LOG_FORMAT=log_format,
        MDSERVICE_EVENT_LOG="log", MDSERVICE_RELAY=f"127.0.0.1:{stage.free_port()}",
    )  # fmt: skip
    service = stage.program("run", **env).wait_ready()
    simulator.quotes(("AAPL", 1, 2))
    listener.wait("AAPL", 1)
    tcp = f"http://127.0.0.1:{port}"
    with relay_clients(env["MDSERVICE_RELAY"], gathered):
        ask_everything(service, tcp, gathered)
        gathered.program("status beside", stage.beside(service, "status", "--json"))
    for pid in [service.pid, *children(service.pid)]:
        gathered.add(f"argv of {pid}", argv(pid))
    with service.http.stream("GET", f"{MARKET_DATA}/stream") as stream:
        simulator.quotes(("AAPL", 3, 4))
        gathered.add("stream", next(stream.iter_text()))

    # Commands beside it, that work and that fail.
    ask_by_command(stage, service, env, gathered)

    # The feed is lost, and refuses them.
    simulator.refuse_next(402, when="auth", times=1000)
    simulator.drop()
    listener.state("fatal", within=15)
    # Redis wants another password.
    with valkey.client(password=PASSWORD) as client:
        client.config_set("requirepass", "other")
        client.client_kill_filter(_type="normal", skipme=True)
    service.until(lambda s: s["redis"]["last_error"])
    ask_everything(service, tcp, gathered)
    ask_by_command(stage, service, env, gathered)
    gathered.add("feed.status", json.dumps(listener.states))
    with valkey.client(password="other") as client:
        client.config_set("requirepass", "")
        for name in client.scan_iter("*"):
            gathered.add(f"key {name!r}", repr(client.dump(name)))
        gathered.add("clients", json.dumps(client.client_list()))
    assert service.end() == 0
    gathered.program("run", service)
    assert any("AAPL" in text for _, text in gathered.texts)
    gathered.check()


def test_no_secret_comes_out_where_the_feed_sends_it_back(stage: Any) -> None:
    simulator, valkey, gathered = stage.simulator(), stage.valkey(), Gathered()
    listener, port = stage.listener(valkey), stage.free_port()
    env = secret_env(
        simulator, valkey, MDSERVICE_FEED_URL=simulator.url, MDSERVICE_DRIVER="websockets",
        MDSERVICE_HTTP=f"127.0.0.1:{port}", MDSERVICE_REDIS_URL=valkey.url,
    )  # fmt: skip
    service = stage.program("run", **env).wait_ready()
    for told in (KEY, SECRET):
        simulator.send_raw(json.dumps([{"T": "q", "S": told, "bp": told}]))
        simulator.send_messages([{"T": "error", "code": 500, "msg": f"no good: {told}"}])
        service.until(lambda s: s["feed"]["last_error"])
        ask_everything(service, f"http://127.0.0.1:{port}", gathered)
        gathered.program("status", stage.beside(service, "status"))
        service.wait_ready()
    gathered.add("feed.status", json.dumps(listener.states))
    assert service.end() == 0
    gathered.program("run", service)
    gathered.check()


def test_no_secret_comes_out_of_a_start_that_fails(stage: Any) -> None:
    simulator, valkey, gathered = stage.simulator(key="other"), stage.valkey(), Gathered()
    with_password = f"ws://user:{QUOTED}@127.0.0.1:9/v2/iex"
    cases: dict[str, dict[str, str]] = {
        "refused": {"MDSERVICE_FEED_URL": simulator.url, "MDSERVICE_DRIVER": "websockets"},
        "refused sdk": {"MDSERVICE_FEED_URL": simulator.url, "MDSERVICE_DRIVER": "alpaca-py"},
        "bad redis url": {"MDSERVICE_REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:port"},
        "odd redis url": {"MDSERVICE_REDIS_URL": f"{PASSWORD}"},
        "bad feed url": {"MDSERVICE_FEED_URL": f"http://user:{QUOTED}@127.0.0.1/"},
        "bad positions": {"MDSERVICE_POSITIONS": f"ftp://user:{QUOTED}@127.0.0.1/"},
        "secret alone": {"ALPACA_API_KEY": "", "MDSERVICE_FEED_URL": with_password},
        "bad token": {"MDSERVICE_API_TOKEN": TOKEN + "\n"},
        "bad key": {"ALPACA_API_KEY": KEY + "\nX: y"},
        "bad secret": {"ALPACA_SECRET_KEY": SECRET + "\x00"[:0] + " é\n"},
        "bad ttl": {"MDSERVICE_PRICE_TTL": "soon"},
        "bad relay keys": {"MDSERVICE_RELAY_KEYS": f"{RELAY_KEY}:{RELAY_SECRET},{RELAY_KEY}"},
        "key twice": {"MDSERVICE_RELAY_KEYS": f"{RELAY_KEY}:{RELAY_SECRET},{RELAY_KEY}:x"},
        "bad relay": {"MDSERVICE_RELAY": f"{RELAY_KEY}:{RELAY_SECRET}@127.0.0.1:9"},
        "no certificate": {"MDSERVICE_RELAY_CERT": "/nowhere", "MDSERVICE_RELAY_KEY_FILE": "/x"},
    }
    programs = {
        name: stage.program(
            "run", **secret_env(simulator, valkey, **{"MDSERVICE_FEED_URL": simulator.url, **env})
        )
        for name, env in cases.items()
    }
    file = stage.folder() / "mdservice.toml"
    file.write_text(f'[mdservice]\napi_key = "{KEY}"\nsecret_key = ["{SECRET}"]\n')
    programs["bad file"] = stage.program("--config", str(file), "run")
    broken = stage.folder() / "mdservice.toml"
    broken.write_text(f'[mdservice]\napi_key = "{KEY}\nsecret_key = "{SECRET}"\n')
    programs["broken file"] = stage.program("--config", str(broken), "run")
    for name, program in programs.items():
        assert program.code(within=60) == 78, f"{name}: {program.said}"
        gathered.program(name, program)
    gathered.check()


def test_no_secret_comes_out_of_a_run_whose_urls_carry_them(stage: Any) -> None:
    """A feed URL with a password in it, nobody there; TLS where there is none."""
    valkey, simulator, gathered = stage.valkey(), stage.simulator(), Gathered()
    port = stage.free_port()
    env = secret_env(
        simulator, valkey, MDSERVICE_FEED_URL=f"ws://user:{QUOTED}@127.0.0.1:9/v2/iex?k={KEY}",
        MDSERVICE_REST_URL=f"http://user:{QUOTED}@127.0.0.1:9",
        MDSERVICE_TRADING_URL=f"http://user:{QUOTED}@127.0.0.1:9",
        MDSERVICE_REDIS_URL=f"rediss://user:{QUOTED}@127.0.0.1:{simulator.port}/0",
        MDSERVICE_HTTP=f"127.0.0.1:{port}", MDSERVICE_DRIVER="auto",
    )  # fmt: skip
    service = stage.program("run", **env).wait_answers()
    service.until(lambda s: s["feed"]["last_error"] and s["redis"]["last_error"])
    ask_everything(service, f"http://127.0.0.1:{port}", gathered)
    ask_by_command(stage, service, env, gathered)
    service.end(within=6)
    gathered.program("run", service)
    gathered.check()
