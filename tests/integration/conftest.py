"""The whole program from outside: its process, a simulated Alpaca, a Valkey, a listener.

Everything that a test starts hangs on its :class:`Stage`, which ends it, whatever happens.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio.from_thread
import httpx
import pytest
import redis

import mdservice
from mdservice.clock import Clock
from mdservice.feed.alpaca import sdk_driver
from mdservice.simulator import SimulatorConfig, open_simulator
from tests.conftest import free_port
from tests.integration.fork_server import Forked, ForkServer

KEY, SECRET = "PKE2E", "e2e-secret"
_ROOT = Path(mdservice.__file__).parent.parent
_NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing answers, nothing leaves the machine
_POLL_S = 0.02
_symbols = itertools.count()
_MDSERVICE = ("-m", "mdservice")


def patient(seconds: float) -> float:
    """The limit on this machine: longer while more programs want to run than it has processors."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def eventually(condition: Callable[[], Any], *, within: float = 20.0, what: Any = "") -> Any:
    """Poll until the condition gives something true; that is returned."""
    within = patient(within)
    deadline = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() > deadline:
            told = what() if callable(what) else what
            pytest.fail(f"not within {within} s: {told}")
        time.sleep(_POLL_S)
    return found


def together(body: Callable[..., None], each: Sequence[Any], **more: Any) -> None:
    """Run the body for every one of these at once; most of a test's time is waiting."""
    with concurrent.futures.ThreadPoolExecutor(len(each)) as pool:
        for future in [pool.submit(body, one, **more) for one in each]:
            future.result()


def exact(text: bytes | str) -> dict[str, Any]:
    """A JSON object, its fractions as decimals."""
    decoded: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return decoded


def published_so_far(pubsub: Any) -> list[dict[str, Any]]:
    """The messages up to now: the answer to a PING comes behind all that was published before it."""
    pubsub.ping()
    messages: list[dict[str, Any]] = []
    deadline = time.monotonic() + patient(20)
    while time.monotonic() < deadline:
        if (message := pubsub.get_message(timeout=1)) is None:
            continue
        if message["type"] == "pong":
            return messages
        messages.append(message)
    pytest.fail("the server does not answer the listener's PING")


def new_symbol() -> str:
    """One that no other test of this run uses."""
    number, letters = next(_symbols), ""
    for _ in range(3):
        number, rest = divmod(number, 26)
        letters = chr(ord("A") + rest) + letters
    return "Q" + letters


def is_gone(pid: int) -> bool:
    """No such process is left, or only its entry."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


@functools.cache
def _fork_server() -> ForkServer:
    server = ForkServer()
    atexit.register(server.close)
    return server


class Program:
    """One process of the program, in a folder of its own, with nothing inherited.

    ``mdservice`` comes from the fork server, unless the start of the interpreter matters: on a
    terminal, with another ``PYTHONPATH``, or where coverage is measured in each process.
    """

    def __init__(
        self,
        args: Sequence[str],
        env: dict[str, str],
        folder: Path,
        program: Sequence[str] = _MDSERVICE,
        terminal: int | None = None,
    ) -> None:
        self.folder = folder
        self.socket = folder / "mdservice.sock"
        count = next(_symbols)
        self._out, self._err = folder / f"out-{count}", folder / f"err-{count}"
        inherited = {k: v for k, v in os.environ.items() if k.startswith("COVERAGE_")}
        python_path = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(_ROOT)]))
        base = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "LANG": "C.UTF-8",
        }
        self.started = time.monotonic()
        self._http: httpx.Client | None = None
        self.args = [sys.executable, *program, *args]
        self.env = {**inherited, **base, **env, "PYTHONPATH": python_path}
        fresh = program != _MDSERVICE or terminal is not None or inherited or "PYTHONPATH" in env
        self.process: subprocess.Popen[bytes] | Forked
        with self._out.open("wb") as out, self._err.open("wb") as err:
            if not fresh:
                self.process = _fork_server().start(args, self.env, folder, out, err)
                return
            self.process = subprocess.Popen(
                self.args,
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=out if terminal is None else terminal,
                stderr=err if terminal is None else terminal,
                cwd=folder,
                env=self.env,
                start_new_session=terminal is not None,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def said(self) -> str:
        return f"\n{self.args[3:]}\nstdout: {self.stdout}\nstderr: {self.stderr}"

    @property
    def http(self) -> httpx.Client:
        """A client of its API over its UNIX socket."""
        if self._http is None:
            # Below the time after which the server closes an idle connection.
            limits = httpx.Limits(keepalive_expiry=2)
            transport = httpx.HTTPTransport(uds=str(self.socket), limits=limits)
            self._http = httpx.Client(transport=transport, base_url="http://mdservice", timeout=30)
        return self._http

    def get(self, path: str, status: int = 200, **options: Any) -> Any:
        """The JSON answer to a GET, whose status is as expected."""
        return self._checked(self.http.get(path, **options), status)

    def post(self, path: str, status: int = 200, **options: Any) -> Any:
        return self._checked(self.http.post(f"/api/v1/market-data/{path}", **options), status)

    def _checked(self, answer: httpx.Response, status: int) -> Any:
        told = f"{answer.request.url.path}: {answer.status_code} {answer.text}"
        if answer.status_code >= 500 != status:
            told += self.said[-3000:]
        assert answer.status_code == status, told
        return exact(answer.text)

    def subscribe(self, *symbols: str) -> None:
        """Subscribe, and wait for the acknowledgement, which a busy machine answers late."""
        answer = self.post("subscribe", json={"symbols": list(symbols)})
        assert answer["status"] in {"subscribed", "pending"}, answer
        path = "/api/v1/market-data/subscriptions"
        eventually(lambda: self.get(path)["channels"].keys() >= set(symbols), what=answer)

    def status(self) -> Any:
        return self.get("/status")

    def counter(self, name: str) -> int:
        value = self.status()["counters"][name]
        assert isinstance(value, int)
        return value

    def ready(self) -> tuple[bool, list[str]]:
        """What ``/health/ready`` says; its status code agrees with it."""
        answer = self.http.get("/health/ready")
        body = answer.json()
        assert answer.status_code == (200 if body["ready"] else 503), answer.text
        return body["ready"], body["reasons"]

    def answers(self) -> bool:
        # A plain socket first: httpcore leaves the one of a refused connection open.
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.socket)):
                return False
        try:
            return self.http.get("/health/live").status_code in {200, 503}
        except httpx.TransportError:
            return False

    def wait_answers(self, within: float = 30.0) -> Program:
        def look() -> bool:
            assert self.process.poll() is None, f"it ended: {self.said}"
            return self.answers()

        eventually(look, within=within, what=lambda: f"an answer {self.said}")
        return self

    def wait_ready(self, within: float = 30.0) -> Program:
        self.wait_answers(within)
        eventually(lambda: self.ready()[0], within=within, what=lambda: f"ready {self.said}")
        return self

    def until(self, condition: Callable[[Any], Any], *, within: float = 20.0) -> Any:
        """Poll the status until the condition holds for it."""
        return eventually(
            lambda: condition(self.status()), within=within, what=lambda: f"{self.status()}"
        )

    def code(self, within: float = 30.0) -> int:
        """Wait for the end; the exit code."""
        within = patient(within)
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still runs after {within} s: {self.said}")

    def end(self, by: signal.Signals = signal.SIGTERM, within: float = 15.0) -> int:
        """Send the signal and wait for the end."""
        self.process.send_signal(by)
        return self.code(within)

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(6)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class FeedSimulator:
    """A simulator on a loop in another thread; its methods are called there."""

    def __init__(
        self,
        portal: anyio.from_thread.BlockingPortal,
        port: int,
        clock: Clock | None = None,
        **config: Any,
    ) -> None:
        self._portal = portal
        opened = open_simulator(SimulatorConfig(**{"rate": 0, **config}), port=port, clock=clock)
        self._block = portal.wrap_async_context_manager(opened)
        self.simulator = self._block.__enter__()
        self._open = True

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.simulator, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._portal.call(functools.partial(value, *args, **kwargs))

        return call

    def quotes(self, *quotes: tuple[Any, ...], **options: Any) -> None:
        """Send ``(symbol, bid, ask[, t])`` in one frame; there is somebody to hear them."""
        wire = [dict(zip(("S", "bp", "ap", "t"), quote, strict=False)) for quote in quotes]
        assert self.send_quotes(wire, **options), "no client is subscribed"

    def subscribed(self) -> set[str]:
        return {s for c in self.simulator.connections for s in c.subscriptions["quotes"]}

    def close(self) -> None:
        if self._open:
            self._open = False
            self._block.__exit__(None, None, None)


class Listener:
    """Hears ``price.updated`` and ``feed.status`` in a thread, all in order."""

    def __init__(self, valkey: Any) -> None:
        self.raw: list[bytes] = []
        self.states: list[dict[str, Any]] = []
        self._client = valkey.client()
        self._pubsub = self._client.pubsub()
        self._wakes = f"listener.{id(self)}"
        self._pubsub.subscribe("price.updated", "feed.status", self._wakes)
        for _ in range(3):
            assert self._pubsub.get_message(timeout=20)["type"] == "subscribe"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            # The limit holds for the rest of a message too, after which the library reconnects.
            message = self._pubsub.get_message(timeout=20)
            if message is None or self._stop.is_set():
                continue
            assert message["type"] == "message", "its connection was cut, it may have missed some"
            if message["channel"] == b"price.updated":
                self.raw.append(message["data"])
            else:
                self.states.append(json.loads(message["data"]))

    def events(self, *symbols: str) -> list[dict[str, Any]]:
        """All so far, of these symbols or of every one."""
        heard = [exact(raw) for raw in list(self.raw)]
        return [event for event in heard if not symbols or event["symbol"] in symbols]

    def wait(self, symbol: str, seq: int, within: float = 20.0) -> list[dict[str, Any]]:
        """The symbol's events once the one with this number has been heard."""

        def look() -> list[dict[str, Any]]:
            events = self.events(symbol)
            return events if any(event["seq"] >= seq for event in events) else []

        found: list[dict[str, Any]] = eventually(
            look,
            within=within,
            what=lambda: (
                f"{symbol} seq {seq}; heard {self.events(symbol)[-5:]}, {len(self.raw)} in all"
            ),
        )
        return found

    def heard(self, *states: str) -> bool:
        """Whether these states were published, in this order, others between them allowed."""
        told = iter([message["state"] for message in self.states])
        return all(state in told for state in states)

    def state(self, name: str, within: float = 20.0) -> dict[str, Any]:
        """The first message of this state, waited for."""
        found: dict[str, Any] = eventually(
            lambda: next((m for m in list(self.states) if m["state"] == name), None),
            within=within,
            what=lambda: f"{name}; heard {self.states}",
        )
        return found

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(redis.RedisError):  # a server that has ended, and so the thread
            self._client.publish(self._wakes, b"")
        self._thread.join()
        self._pubsub.close()
        self._client.close()


class Stage:
    """Starts whatever a test needs, and ends all of it, the last started first."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, server: type) -> None:
        self._portal, self._server = portal, server
        self._stack = contextlib.ExitStack()
        self.eventually = eventually
        self.together = together
        self.new_symbol = new_symbol
        self.exact = exact
        self.is_gone = is_gone

    def defer(self, close: Callable[[], Any]) -> None:
        """Call this at the test's end."""
        self._stack.callback(close)

    def folder(self) -> Path:
        # Short: a UNIX socket's path has about a hundred bytes, pytest's folders need more.
        folder = Path(tempfile.mkdtemp(prefix="e2e-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def program(self, *args: str, folder: Path | None = None, **env: str) -> Program:
        """Start ``mdservice ARGS`` with exactly these variables."""
        program = Program(args, env, folder or self.folder())
        self._stack.callback(program.close)
        return program

    def example(self, name: str, *args: str, folder: Path | None = None, **env: str) -> Program:
        """Start ``docs/examples/NAME``."""
        path = str(_ROOT / "docs" / "examples" / name)
        return self.python(path, *args, folder=folder, **env)

    def python(
        self,
        *args: str,
        folder: Path | None = None,
        terminal: int | None = None,
        **env: str,
    ) -> Program:
        """Start ``python ARGS``, where a terminal is given as the leader of its session."""
        program = Program(args, env, folder or self.folder(), (), terminal)
        self._stack.callback(program.close)
        return program

    def free_port(self) -> int:
        """A port without a listener; only a server that sets SO_REUSEADDR gets it."""
        return free_port(self._stack)

    def beside(self, service: Program, *args: str, **env: str) -> Program:
        """Run a command in the folder of a service until it ends."""
        program = self.program(*args, folder=service.folder, **env)
        program.code()
        return program

    def simulator(
        self, *, port: int = 0, clock: Clock | None = None, **config: Any
    ) -> FeedSimulator:
        simulator = FeedSimulator(self._portal, port, clock, **config)
        self._stack.callback(simulator.close)
        return simulator

    def valkey(self, *options: str) -> Any:
        server = self._server(*options)
        self._stack.callback(server.close)
        server.start()
        return server

    def listener(self, valkey: Any) -> Listener:
        listener = Listener(valkey)
        self._stack.callback(listener.close)
        return listener

    def account(self, simulator: Any, valkey: Any, **env: str) -> dict[str, str]:
        """The variables of an account at this simulator (or feed URL), and of this Redis."""
        feed_url, rest_url = simulator, _NOWHERE
        others = dict.fromkeys(("crypto", "options", "news"), _NOWHERE.replace("http", "ws"))
        if not isinstance(simulator, str):
            feed_url, rest_url = simulator.url, simulator.rest_url
            others = {feed: simulator.stream_url(feed) for feed in others}
        return {
            "ALPACA_API_KEY": KEY,
            "ALPACA_SECRET_KEY": SECRET,
            "MDSERVICE_FEED_URL": feed_url,
            **{f"MDSERVICE_{feed.upper()}_URL": url for feed, url in others.items()},
            "MDSERVICE_REST_URL": rest_url,
            "MDSERVICE_TRADING_URL": rest_url,
            "MDSERVICE_DRIVER": "websockets",
            "MDSERVICE_REDIS_URL": valkey if isinstance(valkey, str) else valkey.url,
            **env,
        }

    def service(self, simulator: Any, valkey: Any, *args: str, **env: str) -> Program:
        """``mdservice run`` with that account and Redis."""
        return self.program("run", *args, **self.account(simulator, valkey, **env))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session", autouse=True)
def alpaca_py() -> None:
    """Import it before the tests: on a busy machine this takes longer than a driver waits for it."""
    sdk_driver._import_sdk()


@pytest.fixture(scope="session")
def simulator_loop() -> Iterator[anyio.from_thread.BlockingPortal]:
    """The event loop, in a thread, that simulators run on."""
    with anyio.from_thread.start_blocking_portal(backend="asyncio") as portal:
        yield portal


@pytest.fixture
def stage(simulator_loop: Any, shared_valkey: Any) -> Iterator[Stage]:
    """For what one test starts."""
    stage = Stage(simulator_loop, type(shared_valkey))
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def module_stage(simulator_loop: Any, shared_valkey: Any) -> Iterator[Stage]:
    """For what the tests of one file share."""
    stage = Stage(simulator_loop, type(shared_valkey))
    try:
        yield stage
    finally:
        stage.close()
