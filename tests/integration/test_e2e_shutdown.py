"""The end of a service on a signal: what it still writes, how long it takes, with what code."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from typing import Any

import pytest
import redis

from tests.integration.conftest import patient
from tests.integration.feed_server import PlainServer

T0 = 1_763_653_904_208_912_345
SYMBOLS = ("AAPL", "MSFT")


def log_of(client: redis.Redis, symbol: str, exact: Any) -> list[int]:
    """The numbers of a symbol's events in the event log, in order."""
    events = [fields for _, fields in client.xrange("log")]
    mine = [fields[b"data"] for fields in events if fields[b"symbol"] == symbol.encode()]
    return [exact(data)["seq"] for data in mine]


def a_service(stage: Any, **config: Any) -> tuple[Any, Any, Any]:
    simulator, valkey = stage.simulator(**config), stage.valkey()
    service = stage.service(
        simulator, valkey, MDSERVICE_SYMBOLS=",".join(SYMBOLS), MDSERVICE_EVENT_LOG="log"
    )
    return simulator, valkey, service.wait_ready()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_was_accepted_is_written_before_the_end(stage: Any, by: signal.Signals) -> None:
    simulator, valkey, service = a_service(stage)
    valkey.stop_answering()
    count = 2000
    simulator.send_quotes([{"S": "AAPL", "bp": 1, "ap": 2 + n, "t": T0 + n} for n in range(count)])
    service.until(lambda s: s["counters"]["quotes_accepted"] == count)
    started = time.monotonic()
    service.process.send_signal(by)
    time.sleep(0.5)
    assert service.process.poll() is None, f"it did not wait: {service.said}"
    valkey.answer_again()
    assert service.code() == 0, service.said
    assert time.monotonic() - started < patient(5)
    with valkey.client() as client:
        assert log_of(client, "AAPL", stage.exact) == list(range(1, count + 1))
        assert stage.exact(client.get("price:AAPL"))["seq"] == count


def test_it_drains_while_the_feed_still_sends(stage: Any) -> None:
    simulator, valkey, service = a_service(stage, rate=2_000)
    service.until(lambda s: s["counters"]["events_published"] > 500)
    assert service.end() == 0, service.said
    with valkey.client() as client:
        for symbol in SYMBOLS:
            numbers = log_of(client, symbol, stage.exact)
            assert numbers == list(range(1, len(numbers) + 1))
            assert stage.exact(client.get(f"price:{symbol}"))["seq"] == numbers[-1]
    assert not simulator.simulator.connections, "it left the feed"


def test_it_ends_within_5_s_where_redis_never_answers_and_at_once_on_a_second_signal(
    stage: Any,
) -> None:
    made = [a_service(stage) for _ in range(2)]
    for simulator, valkey, service in made:
        valkey.stop_answering()
        simulator.quotes(("AAPL", 1, 2, T0))
        service.until(lambda s: s["counters"]["quotes_accepted"] == 1)
    started = time.monotonic()
    for _, _, service in made:
        service.process.send_signal(signal.SIGTERM)
    _, _, waiting = made[0]
    _, _, hurried = made[1]
    time.sleep(0.4)
    assert hurried.process.poll() is None
    hurried.process.send_signal(signal.SIGTERM)
    again = time.monotonic()
    hurried.code()
    assert time.monotonic() - again < patient(1.5), hurried.said
    assert waiting.code() == 0, waiting.said
    assert time.monotonic() - started < patient(5.1)
    for _, valkey, _ in made:
        valkey.answer_again()


LONG_RUNNING = ["run", "gateway", "simulate", "watch"]
_WITH_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
_IGNORING = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
_EXECUTE = (
    "import os, sys; os.execv(sys.executable, [sys.executable, '-m', 'mdservice', *sys.argv[1:]])"
)


@pytest.fixture(scope="module")
def desk(module_stage: Any) -> Any:
    """The service that the other commands are beside."""
    return module_stage.program("run").wait_ready()


@pytest.fixture(params=LONG_RUNNING)
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def beside(request: pytest.FixtureRequest, command: str) -> dict[str, str]:
    """The variables of a command that asks a service."""
    if command in ("run", "simulate"):
        return {}
    desk = request.getfixturevalue("desk")
    env = {"MDSERVICE_REDIS_URL": desk.status()["redis"]["url"]}
    return env | ({"MDSERVICE_SOCKET": str(desk.socket)} if command == "watch" else {})


def started(
    stage: Any, command: str, env: dict[str, str], before: str = "", terminal: int | None = None
) -> Any:
    """A command at work; ``before`` is Python that the process runs first."""
    folder = stage.folder()
    options = {"MDSERVICE_GATEWAY_HTTP": "127.0.0.1:0", "PYTHONUNBUFFERED": "1", **env}
    program = stage.python(
        "-c", before + _EXECUTE, command, folder=folder, terminal=terminal, **options
    )
    awaited = {
        "run": program.answers,
        "gateway": lambda: "positions from" in program.stdout,
        "simulate": lambda: "positions at" in program.stdout,
        "watch": lambda: "AAPL" in program.stdout,
    }[command]
    if terminal is None:
        stage.eventually(awaited, within=20, what=lambda: program.said)
    return program


def test_a_hangup_ends_every_command_that_runs_on(
    stage: Any, command: str, beside: dict[str, str]
) -> None:
    program = started(stage, command, beside)
    assert program.end(signal.SIGHUP) == 0, program.said
    assert not program.socket.exists()
    assert "Traceback" not in program.stderr


def test_a_hangup_that_is_ignored_stays_ignored(
    stage: Any, command: str, beside: dict[str, str]
) -> None:
    program = started(stage, command, beside, _IGNORING)
    program.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        program.process.wait(0.7)
    assert program.end(signal.SIGTERM) == 0, program.said


def test_an_interrupt_ends_a_background_job_whose_shell_ignores_it(
    stage: Any, command: str, beside: dict[str, str]
) -> None:
    program = started(stage, command, beside, _IGNORING.replace("SIGHUP", "SIGINT"))
    assert program.end(signal.SIGINT) == 0, program.said


_NEVER_ENDS = """
import anyio
from mdservice.cli import cli
from mdservice.cli.watch import show

async def hang(*args, **more):
    print("shown", flush=True)
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            print("ending", flush=True)
            await anyio.sleep_forever()

show._watch = hang
cli(["watch"])
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_second_signal_ends_a_watch_at_once(
    stage: Any, second: signal.Signals, *, on_terminal: bool
) -> None:
    ours, theirs = pty.openpty() if on_terminal else os.pipe()
    program = stage.python("-c", _NEVER_ENDS, terminal=theirs)
    os.close(theirs)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 65_536)

    until(b"shown")
    program.process.send_signal(signal.SIGTERM)
    until(b"ending")
    time.sleep(0.1)  # a signal that comes at once after the first counts as the same
    program.process.send_signal(second)
    assert program.code() == 1
    if on_terminal:
        until(b"\x1b[?1049l\x1b[?25h")
    os.close(ours)


@pytest.mark.parametrize("flood", [False, True], ids=["quiet", "flood"])
@pytest.mark.parametrize("driver", ["websockets", "alpaca-py"])
def test_sigterm_makes_the_service_leave_the_feed_by_a_close_frame(
    stage: Any, driver: str, *, flood: bool
) -> None:
    with PlainServer(flood=flood) as feed:
        program = stage.program(
            "run",
            ALPACA_API_KEY="key",
            ALPACA_SECRET_KEY="secret",
            MDSERVICE_FEED_URL=feed.url,
            MDSERVICE_DRIVER=driver,
            MDSERVICE_SYMBOLS="AAPL",
        )
        stage.eventually(
            lambda: feed.lines and "subscribe" in feed.lines[0].heard,
            within=20,
            what=lambda: program.said,
        )
        program.wait_ready()
        time.sleep(0.5)  # a flood fills the buffers of both sides
        assert program.end(signal.SIGTERM) == 0, program.said
        feed.assert_left()
        assert len(feed.lines) == 1


def test_a_closed_terminal_ends_it_in_order(
    stage: Any, command: str, beside: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    program = started(stage, command, beside, _WITH_TERMINAL, terminal=theirs)
    os.close(theirs)
    shown = b""
    text = {"run": b"api ", "gateway": b"positions from", "simulate": b"positions at"}
    while text.get(command, b"AAPL") not in shown:
        assert select.select([ours], [], [], 60)[0], shown
        shown += os.read(ours, 65_536)
    os.close(ours)
    assert program.code() == 0
    assert not program.socket.exists()
