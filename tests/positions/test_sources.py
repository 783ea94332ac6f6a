"""Where positions come from: the settings' words, HTTP, files; and calls that may hang."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.positions import sources as sources_module
from mdservice.positions.parse import MOST_BYTES
from mdservice.positions.sources import (
    AlpacaPositions,
    FileAbsent,
    FilePositions,
    HttpPositions,
    PositionSource,
    Threads,
    open_source,
)
from mdservice.settings.parsers import parse_positions
from tests.positions import web as webs
from tests.positions.web import Web, open_web

pytestmark = pytest.mark.sockets

TRADING = "https://paper-api.alpaca.markets"


def chosen(text: str, key: str | None = "PKHIDDEN", secret: str | None = "hidden") -> PositionSource | None:  # fmt: skip
    return open_source(text, trading_url=TRADING, api_key=key, secret_key=secret)


def test_none_is_none() -> None:
    assert chosen("none") is None


def test_each_word_has_its_source() -> None:
    alpaca = chosen("alpaca")
    assert isinstance(alpaca, AlpacaPositions)
    assert alpaca.address == f"{TRADING}/v2/positions"
    http = chosen("https://me:hidden@gw/positions?token=hidden")
    assert isinstance(http, HttpPositions)
    assert http.address == "https://***@gw/positions?token=***"
    file = chosen("file:data/positions.json", None, None)
    assert isinstance(file, FilePositions)
    assert file.address == str(Path("data/positions.json"))


@pytest.mark.parametrize(
    ("key", "secret", "named"),
    [(None, None, "ALPACA_API_KEY"), (None, "s", "ALPACA_API_KEY"), ("k", "", "ALPACA_SECRET_KEY")],
)
def test_alpaca_needs_key_and_secret(key: str | None, secret: str | None, named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"set {named}"):
        chosen("alpaca", key, secret)


@pytest.mark.parametrize("text", ["", "Alpaca", "ftp://me:hidden@host", "positions.json"])
def test_other_words_are_a_wrong_setting(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"positions|POSITIONS") as caught:
        chosen(text)
    assert "hidden" not in str(caught.value)


KEY, SECRET = "PKHIDDEN", "hidden-secret"


@pytest.fixture
def web() -> Iterator[Web]:
    with open_web() as web:
        yield web


async def test_path_query_and_headers_are_sent(web: Web) -> None:
    source = HttpPositions(f"{web.url}/mine/?account=7", {"Authorization": "Bearer hidden"})
    await source.fetch()
    await source.aclose()
    assert web.paths == ["/mine/?account=7"]
    (headers,) = web.headers
    assert headers["Authorization"] == "Bearer hidden"
    assert headers["Accept"] == "application/json"
    assert "hidden" not in f"{source.address} {source!r}"


async def test_the_urls_login_is_sent_as_basic_auth_and_never_shown(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    source = HttpPositions(f"{web.url.replace('//', '//me:hidd%40en@')}/mine")
    await source.fetch()
    web.status = 401
    with pytest.raises(PositionsRefused, match="HTTP 401") as caught:
        await source.fetch()
    await source.aclose()
    assert web.headers[0]["Authorization"] == f"Basic {b64encode(b'me:hidd@en').decode()}"
    assert source.address == f"{web.url.replace('//', '//***@')}/mine"
    assert "hidd" not in f"{caught.value} {caplog.text}"


async def test_a_redirect_gets_no_login(web: Web) -> None:
    with open_web() as other:
        web.status, web.extra = 302, {"Location": other.url}
        source = HttpPositions(web.url.replace("//", "//me:hidden@"))
        with pytest.raises(PositionsRefused, match="redirect"):
            await source.fetch()
        await source.aclose()
        assert other.paths == []


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/positions/", "a redirect to /positions/,"),
        ("/login?token=hidden", "a redirect to /login,"),
        (
            "https://me:hidden@desk.example/x?key=hidden#hidden",
            "https://***@desk.example/x?key=***",
        ),
        ("//desk.example/x", "a redirect to //desk.example/x,"),
        (None, "a redirect, which"),
    ],
)
async def test_a_redirect_says_where_it_leads(web: Web, location: str | None, shown: str) -> None:
    web.status, web.extra = 307, {} if location is None else {"Location": location}
    source = HttpPositions(web.url)
    with pytest.raises(PositionsRefused) as caught:
        await source.fetch()
    await source.aclose()
    assert shown in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["/mine", "/mine/", "/mine//", "/", "/a%2Fb/", "/mine/?account=7", "/mine;v=1/"]
)
async def test_the_path_is_asked_as_it_is_written(web: Web, path: str) -> None:
    source = HttpPositions(parse_positions(f" {web.url}{path} "))
    await source.fetch()
    await source.aclose()
    assert web.paths == [path]


async def test_a_connection_that_was_closed_meanwhile_costs_nothing(web: Web) -> None:
    web.behaviour = webs.close_after
    source = HttpPositions(web.url)
    for _ in range(3):
        assert await source.fetch() == []
    await source.aclose()
    assert web.connections == 3


async def test_a_server_that_always_hangs_up_is_asked_twice(web: Web) -> None:
    web.behaviour = webs.hang_up
    source = HttpPositions(web.url)
    with pytest.raises(PositionsUnavailable, match="cannot be read"):
        await source.fetch()
    await source.aclose()
    assert len(web.paths) == 2


async def test_compression_that_was_not_asked_for_is_refused(web: Web) -> None:
    web.behaviour = webs.bad_compression
    source = HttpPositions(web.url)
    with pytest.raises(PositionsRefused, match="without compression"):
        await source.fetch()
    await source.aclose()
    assert web.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "url", ["", "ftp://host/x", "file:///etc/passwd", "host:80", "http://", "http://h:hidden/x"]
)
def test_a_url_of_another_kind_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(ConfigurationError, match="the URL of the positions") as caught:
        HttpPositions(url)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("host", ["a..b", "x" * 80, "\u2028"])
async def test_a_host_that_cannot_be_is_an_error_of_ours(host: str) -> None:
    source = HttpPositions(f"http://me:hidden@{host}:1/x")
    with pytest.raises((PositionsRefused, PositionsUnavailable)) as caught:
        await source.fetch()
    assert "hidden" not in str(caught.value)
    await source.aclose()


async def test_the_keys_are_sent_and_never_shown(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    source = AlpacaPositions(f"{web.url}/", KEY, SECRET)
    assert await source.fetch() == []
    shown = [source.address, repr(source)]
    for status in (401, 403):
        web.status = status
        with pytest.raises(PositionsRefused, match=f"HTTP {status}") as caught:
            await source.fetch()
        assert "ALPACA_API_KEY" in str(caught.value)
        assert "MDSERVICE_TRADING_URL" in str(caught.value)
        shown.append(str(caught.value))
    await source.aclose()
    assert set(web.paths) == {"/v2/positions"}
    assert web.headers[0]["APCA-API-KEY-ID"] == KEY
    assert web.headers[0]["APCA-API-SECRET-KEY"] == SECRET
    assert "hidden" not in f"{shown} {caplog.text}".lower()


async def test_numbers_of_a_stand_in_keep_every_digit(web: Web) -> None:
    web.hold(b'[{"symbol":"A","qty":0.12345678901234567890123,"avg_entry_price":1}]')
    source = AlpacaPositions(web.url, KEY, SECRET)
    (position,) = await source.fetch()
    await source.aclose()
    assert str(position.qty) == "0.12345678901234567890123"


CALLS = tuple(f"A{day:02}1218C00200000" for day in range(26, 38))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for contracts as long as it takes."""
    monkeypatch.setattr(sources_module, "_CONTRACTS_LIMIT_S", 60.0)


class Options:
    """Alpaca's account of options, and their contracts."""

    def __init__(self, web: Web, *held: str) -> None:
        self.contracts: dict[str, Any] = {}
        self.status = 200
        self.rows: list[dict[str, Any]] = [
            {"symbol": each, "qty": "-2", "avg_entry_price": "5", "asset_class": "us_option"}
            for each in held
        ]
        self.web = web
        web.behaviour = self.answer

    def answer(self, asked: webs.Asked) -> None:
        # Not through the web's body: contracts are asked for at the same time
        name = asked.path.rpartition("/")[2]
        document, status = self.contracts.get(name), self.status
        if name == "positions":
            document, status = self.rows, 200
        body = json.dumps(document).encode()
        asked.send_response_only(status)
        asked.send_header("Content-Length", str(len(body)))
        asked.end_headers()
        asked.write(body)

    @property
    def asked(self) -> list[str]:
        return [path.rpartition("/")[2] for path in self.web.paths if "contracts" in path]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("contract", "expected"),
    [
        ({"multiplier": "10", "size": "100"}, "10"),
        ({"multiplier": 10}, "10"),
        ({"size": "150"}, "150"),
        ({"multiplier": None, "size": "100"}, "100"),
        ({"multiplier": "0"}, "100"),
        ({"multiplier": "-1", "size": "10"}, "10"),
        ({"multiplier": "1e99"}, "100"),
        ({"multiplier": "what"}, "100"),
        ([], "100"),
        (None, "100"),
    ],
)
async def test_an_options_multiplier_is_that_of_its_contract(
    web: Web, contract: Any, expected: str
) -> None:
    options = Options(web, CALLS[0])
    options.contracts[CALLS[0]] = contract
    options.rows.append({"symbol": "AAPL", "qty": "1", "avg_entry_price": "5"})
    source = AlpacaPositions(web.url, KEY, SECRET)
    for _ in range(3):
        option, stock = await source.fetch()
        assert (option.multiplier, stock.multiplier) == (int(expected), 1)
    options.rows[0]["multiplier"] = "7"
    option, _ = await source.fetch()
    assert option.multiplier == 7
    await source.aclose()
    assert options.asked == [CALLS[0]]
    assert web.headers[1]["APCA-API-KEY-ID"] == KEY


@pytest.mark.usefixtures("patient")
async def test_many_contracts_are_asked_for_a_few_at_a_time(web: Web) -> None:
    options = Options(web, *CALLS)
    options.contracts = {each: {"multiplier": "10"} for each in CALLS}
    source = AlpacaPositions(web.url, KEY, SECRET)
    found = []
    for _ in range(3):
        positions = await source.fetch()
        found.append([int(each.multiplier) for each in positions].count(10))
    await source.aclose()
    assert found == [10, 12, 12]
    assert sorted(options.asked) == list(CALLS)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_contracts_that_do_not_come_are_left_alone_for_a_while(
    web: Web, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(web, CALLS[0])
    options.status = status
    options.contracts[CALLS[0]] = {"multiplier": "10"}
    source = AlpacaPositions(web.url, KEY, SECRET)
    for _ in range(3):
        (option,) = await source.fetch()
        assert option.multiplier == 100
    assert options.asked == [CALLS[0]]
    options.status = 200
    monkeypatch.setattr(source, "_ask_after_s", 0.0)
    (option,) = await source.fetch()
    assert option.multiplier == 10
    await source.aclose()


async def test_a_contract_that_never_comes_does_not_hold_up_the_positions(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "_CONTRACTS_LIMIT_S", 0.1)
    options = Options(web, CALLS[0])

    def answer_positions(asked: webs.Asked) -> None:
        (webs.stall if "contracts" in asked.path else options.answer)(asked)

    web.behaviour = answer_positions
    source = AlpacaPositions(web.url, KEY, SECRET)
    for _ in range(2):
        (option,) = await source.fetch()
        assert option.multiplier == 100
    await source.aclose()
    assert options.asked == [CALLS[0]]


async def test_a_busy_server_is_asked_once_a_fetch(web: Web) -> None:
    source = AlpacaPositions(web.url, KEY, SECRET)
    for status in (429, 504):
        web.status = status
        with pytest.raises(PositionsUnavailable, match=f"HTTP {status}"):
            await source.fetch()
    await source.aclose()
    assert len(web.paths) == 2


@pytest.mark.parametrize("url", ["http://", "http://me:hidden@/", "ftp://host"])
def test_a_trading_url_that_cannot_be_asked_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AlpacaPositions(url, KEY, SECRET)
    assert "hidden" not in str(caught.value).lower()


def test_no_http_library_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, mdservice.positions.sources as a; a.AlpacaPositions('http://h', 'k', 's');"
        "print(sorted({'alpaca', 'requests', 'httpx'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


ROW = {"symbol": "AAPL", "qty": "10", "avg_entry_price": "150.00"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "positions.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    contents: list[bytes] = []
    parse = sources_module.parse_positions

    def counted(content: bytes, where: str) -> Any:
        contents.append(content)
        return parse(content, where)

    monkeypatch.setattr(sources_module, "parse_positions", counted)
    return contents


def write(path: Path, *quantities: str, age_s: float = 60) -> None:
    path.write_text(json.dumps([{**ROW, "qty": qty} for qty in quantities]))
    when = time.time() - age_s
    os.utime(path, (when, when))


async def quantities(source: FilePositions) -> list[str]:
    return [str(position.qty) for position in await source.fetch()]


async def test_a_file_that_did_not_change_is_read_once(path: Path, reads: list[bytes]) -> None:
    source = FilePositions(path)
    write(path, "1", "2")
    for _ in range(5):
        assert await quantities(source) == ["1", "2"]
    assert len(reads) == 1


async def test_a_file_that_is_rewritten_in_place_is_read_again(
    path: Path, reads: list[bytes]
) -> None:
    source = FilePositions(path)
    write(path, "1")
    assert await quantities(source) == ["1"]
    write(path, "2", age_s=50)
    assert await quantities(source) == ["2"]
    write(path, "22", age_s=50)
    assert await quantities(source) == ["22"]
    assert len(reads) == 3


async def test_a_file_renamed_over_it_is_read_also_with_the_same_size_and_time(
    path: Path, reads: list[bytes]
) -> None:
    source = FilePositions(path)
    write(path, "1")
    assert await quantities(source) == ["1"]
    new = path.with_name("new")
    write(new, "2")
    os.utime(new, ns=(path.stat().st_mtime_ns,) * 2)
    new.rename(path)
    assert await quantities(source) == ["2"]
    assert len(reads) == 2


async def test_changes_within_one_tick_of_the_file_systems_clock_are_seen(path: Path) -> None:
    source = FilePositions(path)
    now_ns = time.time_ns()
    for qty in "123456":
        write(path, qty)
        os.utime(path, ns=(now_ns, now_ns))
        assert await quantities(source) == [qty]


async def test_a_file_half_written_is_waited_for(path: Path) -> None:
    source = FilePositions(path)
    content = json.dumps({"positions": [ROW]})
    for part in ("", content[:1], content[:20], content[:-1], content + content[5:], "\0" * 9):
        path.write_text(part)
        with pytest.raises(PositionsUnavailable, match="holds no JSON"):
            await source.fetch()
    path.write_text(content)
    assert await quantities(source) == ["10"]


async def test_a_file_that_changes_while_it_is_read_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FilePositions(path)
    write(path, "1")

    fstat, seen = os.fstat, []

    def touched(descriptor: int) -> os.stat_result:
        if seen:
            write(path, "2", age_s=30)
        seen.append(descriptor)
        return fstat(descriptor)

    monkeypatch.setattr("mdservice.positions.sources.os.fstat", touched)
    with pytest.raises(PositionsUnavailable, match="is being written"):
        await source.fetch()
    monkeypatch.undo()
    assert await quantities(source) == ["2"]


async def test_a_file_that_is_absent_is_waited_for(path: Path) -> None:
    source = FilePositions(path)
    for _ in range(2):
        with pytest.raises(FileAbsent, match=r"there is no file .*; waiting for it"):
            await source.fetch()
        write(path, "1")
        assert await quantities(source) == ["1"]
        path.unlink()


async def test_a_folder_that_is_absent_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(FileAbsent):
        await FilePositions(tmp_path / "later" / "positions.json").fetch()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            sock.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_pipe, "a pipe"),
        (make_folder, "a folder"),
        (make_socket, "a socket"),
        (make_device, "a device"),
    ],
)
async def test_what_is_no_file_is_refused_at_once(
    path: Path, make: Callable[[Path], None], kind: str
) -> None:
    make(path)
    with anyio.fail_after(2), pytest.raises(PositionsRefused, match=f"it is {kind}"):
        await FilePositions(path).fetch()


async def test_a_pipe_that_takes_the_files_place_does_not_block(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "1")
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr("mdservice.positions.sources.os.stat", lambda _path: status)
    with anyio.fail_after(2), pytest.raises(PositionsRefused, match="it is a pipe"):
        await FilePositions(path).fetch()


async def test_errors_of_the_file_system_are_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: OSError) -> None:
        def raising(_path: Path) -> None:
            raise error

        monkeypatch.setattr("mdservice.positions.sources.os.stat", raising)

    fail(PermissionError(13, "Permission denied"))
    with pytest.raises(PositionsRefused, match=r"positions.json cannot be read: Permission denied"):
        await FilePositions(path).fetch()
    fail(OSError(116, "Stale file handle"))
    with pytest.raises(PositionsUnavailable, match="Stale file handle"):
        await FilePositions(path).fetch()


async def test_a_path_through_a_file_is_refused(path: Path) -> None:
    write(path, "1")
    with pytest.raises(PositionsRefused, match="Not a directory"):
        await FilePositions(path / "x").fetch()


async def test_a_path_that_cannot_be_is_refused() -> None:
    with pytest.raises(PositionsRefused, match="cannot be read"):
        await FilePositions("a\0b").fetch()


async def test_a_huge_file_is_refused(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_BYTES * 1000)
    with pytest.raises(PositionsRefused, match="16 MiB"):
        await FilePositions(path).fetch()


async def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine.json", "7")
    source = FilePositions("~/mine.json")
    assert source.address == str(tmp_path / "mine.json")
    assert await quantities(source) == ["7"]


def test_the_home_folder_of_an_unknown_user_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match="home folder that is not known"):
        FilePositions("~no-such-user-here/x.json")


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_few_may_hang_and_then_none_is_begun(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "_LOOK_S", 0.001)
    ended = threading.Event()

    async def main() -> None:
        threads = Threads("the place")
        try:
            for _ in range(4):
                with anyio.move_on_after(0.05) as scope:
                    await threads.run(ended.wait)
                assert scope.cancelled_caught
            with pytest.raises(PositionsUnavailable, match="the place: 4 earlier attempts"):
                await threads.run(ended.wait)
        finally:
            ended.set()
        with anyio.fail_after(5):
            while threads._running:
                await anyio.sleep(0.01)
            assert await threads.run(lambda: 7) == 7

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_call_cancelled_before_it_began_is_not_counted(backend: str) -> None:
    async def main() -> None:
        threads = Threads("the place")
        for _ in range(10):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await threads.run(lambda: None)
        with anyio.fail_after(5):
            while threads._running:
                await anyio.sleep(0.01)

    anyio.run(main, backend=backend)
