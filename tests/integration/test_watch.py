"""``mdservice watch`` beside a real service: on a terminal, through a pipe, once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.watching import WITHIN_S, Watch, process_state, unread

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (\S+) \S+ (-?[\d.,]+ @ [\d.,]+ P&L \S+ \(\S+ %\) )?"
    r"(last [\d.,]+ )?(day \S+ % )?(volume [\d.,]+ )?(live|stale|HALTED)"
)
ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def service(module_stage: Any, _services: list[Any]) -> Any:
    """The simulated desk, shared; started again where a test ended it."""
    if not _services or _services[-1].process.poll() is not None:
        _services.append(module_stage.program("run", MDSERVICE_GATEWAY_HTTP="127.0.0.1:0"))
    started = _services[-1].wait_ready()

    def priced() -> bool:
        found = started.get("/api/v1/market-data/prices")["prices"]
        return {price["symbol"] for price in found} >= set(held_by(started))

    module_stage.eventually(lambda: len(held_by(started)) >= 6 and priced(), what="prices")
    return started


@pytest.fixture(scope="module")
def _services() -> list[Any]:
    return []


@pytest.fixture
def watch(service: Any) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def start(
            *args: str, terminal: tuple[int, int] | None = None, of: Any = service, **env: str
        ) -> Watch:
            watch = Watch(of, *args, terminal=terminal, **env)
            stack.callback(watch.close)
            return watch

        yield start


def widths(lines: list[str]) -> int:
    return max(map(len, lines))


def test_a_terminal_shows_positions_follows_its_size_and_is_restored(watch: Any) -> None:
    shown = watch(terminal=(100, 30))
    shown.until(r"AAPL[^\n]*live")
    assert ENTERED in shown.text
    lines = shown.screen()
    assert lines[0].startswith(("running", "degraded"))
    text = "\n".join(lines)
    assert "simulated prices" in text
    assert re.search(r"[678] priced, 0 unpriced", text), "the simulated desk trades"
    assert "Ctrl-C ends" in lines[-1]
    assert len(lines) == 30

    shown.resize(40, 8)
    shown.until("not shown: \\d+ position")
    lines = shown.screen()
    assert len(lines) == 8
    assert widths(lines) <= 40

    shown.resize(200, 50)
    shown.until("change")
    lines = shown.screen()
    assert len(lines) == 50
    # A warning may be longer than the table.
    table = [line.rstrip() for line in lines if re.match(r"(symbol|[A-Z]{3,5}) +[-\d a-z]", line)]
    assert len(table) > 5
    assert widths(table) <= 160

    os.write(shown.end, b"\x03")  # Ctrl-C, by the terminal
    code, errors = shown.ended()
    assert (code, errors) == (0, "")
    assert shown.text.rindex(LEFT) > shown.text.rindex(ENTERED)
    assert "\x1b[?25h" in shown.text[shown.text.rindex(ENTERED) :], "the cursor is back"


def local_modes(descriptor: int) -> int:
    """The terminal's flags for keys: whether they are shown, and sent at once."""
    modes: int = termios.tcgetattr(descriptor)[3]
    return modes


def test_keys_scroll_sort_and_end(watch: Any, stage: Any) -> None:
    shown = watch(terminal=(80, 12))
    before = local_modes(shown.end)
    shown.until(r"AAPL[^\n]*live")
    assert not local_modes(shown.end) & (termios.ICANON | termios.ECHO)
    shown.until("s sorts")
    os.write(shown.end, b"\x1b[B")
    shown.until(r"[ m]2-\d+ of")
    os.write(shown.end, b"\x1b[")
    os.write(shown.end, b"F")
    shown.until(r"\d-(\d+) of \1\D")
    shown.resize(80, 9)
    shown.until(r"\d-(\d+) of \1\D[^\n]*\x1b\[H")
    os.write(shown.end, b"g")
    shown.until("not shown")
    os.write(shown.end, b"s")
    shown.until("P&L ▼")
    os.write(shown.end, b"r")
    shown.until("P&L ▲")
    os.write(shown.end, b"q")
    assert shown.ended() == (0, "")
    assert shown.text.rindex(LEFT) > shown.text.rindex(ENTERED)
    assert local_modes(shown.end) == before


@pytest.mark.parametrize("end", [b"\x03", b"\x1aq"])
def test_the_keys_of_the_terminal_are_given_back(watch: Any, stage: Any, end: bytes) -> None:
    shown = watch(terminal=(80, 24))
    before = local_modes(shown.end)
    shown.until(r"AAPL[^\n]*live")
    stage.eventually(lambda: local_modes(shown.end) != before)
    os.write(shown.end, end[:1])
    stage.eventually(lambda: local_modes(shown.end) == before)
    if len(end) > 1:
        stage.eventually(lambda: process_state(shown.process.pid) == "T")
        shown.process.send_signal(signal.SIGCONT)
        stage.eventually(lambda: local_modes(shown.end) != before)
        os.write(shown.end, end[1:])
    assert shown.ended() == (0, "")
    assert local_modes(shown.end) == before


def test_limits_and_a_trip_are_shown(stage: Any) -> None:
    port = stage.free_port()
    env = {"MDSERVICE_GATEWAY_HTTP": f"127.0.0.1:{port}"}
    limits = "* value > 1000000; AAPL qty > 100"
    service = stage.program("run", MDSERVICE_LIMITS=limits, **env).wait_ready()
    own = Watch(service, terminal=(80, 24))
    asks = Watch(service, terminal=(100, 40), MDSERVICE_LIMITS="")
    try:
        for shown in (own, asks):
            shown.until(r"BREAKER TRIPPED: AAPL qty > 100")
            shown.until(r"AAPL qty > 100 [^\n]*█+[^\n]*1\d\d %")
        asks.until(f"judged by the gateway at 127.0.0.1:{port}")
        lines = stage.beside(service, "watch", "--once").stdout.splitlines()
        assert any(line.startswith("BREAKER TRIPPED") for line in lines)
    finally:
        own.close()
        asks.close()


def test_ctrl_z_gives_the_terminal_back_for_a_while(watch: Any, stage: Any) -> None:
    shown = watch(terminal=(80, 24))
    shown.until(r"AAPL[^\n]*live")
    os.write(shown.end, b"\x1a")
    shown.until(re.escape(LEFT))
    stage.eventually(lambda: process_state(shown.process.pid) == "T")
    shown.process.send_signal(signal.SIGCONT)
    shown.until(re.escape(ENTERED))
    shown.until(r"AAPL[^\n]*live")
    shown.process.send_signal(signal.SIGINT)
    assert shown.ended() == (0, "")
    assert shown.text.rindex(LEFT) > shown.text.rindex(ENTERED)


def test_colours_are_left_out_where_they_are_not_wanted(watch: Any) -> None:
    coloured, plain = watch(terminal=(100, 30)), watch(terminal=(100, 30), NO_COLOR="1")
    for shown in (coloured, plain):
        shown.until(r"[▲▼] \d[^\n]*live")
        shown.process.send_signal(signal.SIGTERM)
        assert shown.ended() == (0, "")
    colour = re.compile(r"\x1b\[(\d;)?3\dm")
    assert colour.search(coloured.text)
    assert not colour.search(plain.text)


@pytest.mark.parametrize("terminal", [None, (80, 24)])
def test_a_pipe_or_a_dumb_terminal_gets_lines(watch: Any, terminal: Any) -> None:
    shown = watch(terminal=terminal, TERM="dumb")
    for symbol in ("AAPL", "MSFT", "AAPL", "AAPL"):
        shown.until(rf"Z {symbol} [^\n]*\n")
    shown.process.send_signal(signal.SIGINT)
    assert shown.ended() == (0, "")
    assert "\x1b" not in shown.text
    lines = shown.text.replace("\r", "").splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    seconds = [line.split()[0] for line in lines if " AAPL " in line]
    assert len(seconds) == len(set(seconds)), "more than one line a second"


def test_a_closed_pipe_ends_it_quietly(watch: Any) -> None:
    shown = watch()
    shown.until("AAPL")
    os.close(shown.end)
    assert shown.process.wait(WITHIN_S) == 0
    assert shown.process.communicate()[1] == b""


@pytest.mark.parametrize("end", ["signal", "close"])
def test_a_pipe_that_is_not_read_does_not_keep_it_from_ending(
    stage: Any, watch: Any, end: str
) -> None:
    shown = watch()
    fcntl.fcntl(shown.end, fcntl.F_SETPIPE_SZ, 4096)
    shown.until("AAPL")
    counts = [0]

    def stuck() -> bool:
        """Nothing more came for two periods of its writing."""
        time.sleep(0.5)
        counts.append(unread(shown.end))
        return len(set(counts[-5:])) == 1

    stage.eventually(stuck, within=60)
    if end == "signal":
        shown.process.send_signal(signal.SIGTERM)
    else:
        os.close(shown.end)
    assert shown.process.wait(WITHIN_S) == 0
    assert shown.process.communicate()[1] == b""


def held_by(service: Any) -> list[str]:
    return [row["symbol"] for row in service.get("/api/v1/positions")["positions"]]


def once(stage: Any, service: Any, *args: str) -> tuple[list[str], Any]:
    """What is held, and the ended command; again where the simulated desk traded meanwhile."""
    for _ in range(5):
        before = held_by(service)
        program = stage.beside(service, "watch", "--once", *args)
        if held_by(service) == before:
            return before, program
    pytest.fail("it trades all the time")


def test_once_shows_everything_once(stage: Any, service: Any) -> None:
    held, program = once(stage, service)
    assert program.code() == 0, program.said
    lines = program.stdout.splitlines()
    assert "\x1b" not in program.stdout
    known = "( last)?( day %)?( volume)?"  # as far as the simulator's first seconds have them
    headings = f"symbol qty avg price price bid ask age{known} value P&L P&L % day P&L status"
    assert re.fullmatch(headings, re.sub(" +", " ", lines[2]))
    assert sum(line.endswith("  live") for line in lines) >= 8, program.stdout
    (total,) = (index for index, line in enumerate(lines) if line.startswith("total"))
    assert {line.split()[0] for line in lines[3:total]} == set(held)
    assert lines[total].startswith(f"total  {len(held)} priced, 0 unpriced")
    assert re.match(r"day (of held )?[-+\d]", lines[total + 1])


def test_chosen_symbols_alone_are_shown(stage: Any, service: Any) -> None:
    service.subscribe("IBM")
    stage.eventually(lambda: stage.beside(service, "watch", "--once", "IBM").code() == 0)
    chosen = held_by(service)[-1]
    held, program = once(stage, service, f"zzz,{chosen}", "IBM")
    assert chosen in held, "closed that very moment"
    assert program.code() == 0, program.said
    rows = {line.split()[0]: line for line in program.stdout.splitlines() if line.split()}
    assert rows.keys() - {"running", "symbol", "not", "day"} == {chosen, "ZZZ", "IBM", "total"}
    assert rows["ZZZ"].endswith("not asked")
    assert "not subscribed: ZZZ; run mdservice subscribe ZZZ" in program.stdout
    assert "1 priced, 0 unpriced" in rows["total"]
    service.post("unsubscribe", json={"symbols": ["IBM"]})


def test_redis_and_positions_of_the_settings_need_no_service(stage: Any, service: Any) -> None:
    folder = stage.folder()
    row = {"symbol": "AAPL", "qty": "3", "avg_entry_price": "1.00"}
    (folder / "positions.json").write_text(json.dumps([row]))
    url = service.status()["redis"]["url"]
    program = stage.program(
        "watch", "--once", "--redis-url", url, "--positions", f"file:{folder}/positions.json",
        folder=folder,
    )  # fmt: skip
    assert program.code() == 1, program.said
    assert "no service answers at" in program.stdout
    (line,) = (line for line in program.stdout.splitlines() if line.startswith("AAPL "))
    assert line.split()[1:3] == ["3", "1.00"]
    assert line.endswith("live")


def test_without_a_service_it_fails_as_status_does(stage: Any) -> None:
    folder = stage.folder()
    told = [stage.program(command, folder=folder) for command in ("watch", "status")]
    assert [program.code() for program in told] == [1, 1]
    assert told[0].stderr == told[1].stderr
    assert "no service answers at" in told[0].stderr


def test_without_redis_once_fails(stage: Any) -> None:
    program = stage.program(
        "watch", "--once", "--redis-url", f"redis://127.0.0.1:{stage.free_port()}"
    )
    assert program.code(within=30) == 1, program.said
    assert "Redis" in program.stderr
    assert "Traceback" not in program.said


def test_a_service_that_ends_is_reported_and_waited_for(stage: Any) -> None:
    service = stage.program("run", MDSERVICE_GATEWAY_HTTP="127.0.0.1:0").wait_ready()
    screen = Watch(service, terminal=(100, 30))
    lines = Watch(service, terminal=None)
    try:
        screen.until(r"AAPL[^\n]*live")
        lines.until(r"AAPL[^\n]*live")
        service.end(signal.SIGKILL)
        screen.until("service away")
        screen.until(r"AAPL[^\n]*old")
        lines.until(r"AAPL[^\n]*old")
        lines.complains("# no service answers at")  # before the next one is there
        stage.program("run", folder=service.folder, MDSERVICE_GATEWAY_HTTP="127.0.0.1:0")
        screen.until(r"running[^\n]*events/s")
        screen.until(r"AAPL[^\n]*live")
        lines.until(r"AAPL[^\n]*live")
        for watch in (screen, lines):
            watch.process.send_signal(signal.SIGINT)
        code, errors = lines.ended()
        assert code == 0
        assert "Traceback" not in errors
        assert screen.ended() == (0, "")
    finally:
        screen.close()
        lines.close()
