"""Positions over HTTP, of a gateway and of Alpaca: what is sent, what is shown, what is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator

import pytest

from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.positions.http import AlpacaPositions, HttpPositions
from mdservice.settings.parsers import parse_positions
from tests.positions import web as webs
from tests.positions.web import Web, open_web

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
        "import sys, mdservice.positions.http as a; a.AlpacaPositions('http://h', 'k', 's');"
        "print(sorted({'alpaca', 'requests', 'httpx'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
