"""Alpaca's positions by alpaca-py: what it sends and does not do, and its private names."""

from __future__ import annotations

import ast
import contextlib
import inspect
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import requests
from alpaca.common import rest
from alpaca.trading.client import TradingClient

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.positions import alpaca_line
from mdservice.positions.alpaca import AlpacaPositions
from mdservice.positions.alpaca_line import Line
from tests.positions import web as webs
from tests.positions.web import Web, open_web

KEY, SECRET = "PKHIDDEN", "hidden-secret"


@pytest.fixture
def web() -> Iterator[Web]:
    with open_web() as web:
        yield web


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


async def test_nothing_sleeps_in_secret(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(_seconds: float) -> None:
        raise AssertionError("alpaca-py sleeps")

    monkeypatch.setattr(rest.time, "sleep", sleep)
    source = AlpacaPositions(web.url, KEY, SECRET)
    for status in (429, 504):
        web.status = status
        with pytest.raises(PositionsUnavailable, match=f"HTTP {status}"):
            await source.fetch()
    await source.aclose()
    assert len(web.paths) == 2


async def test_a_broken_compression_is_unavailable(web: Web) -> None:
    web.behaviour = webs.bad_compression
    source = AlpacaPositions(web.url, KEY, SECRET)
    with pytest.raises(PositionsUnavailable, match="cannot be read"):
        await source.fetch()
    await source.aclose()


@pytest.mark.parametrize("url", ["http://", "http://me:hidden@/", "ftp://host"])
async def test_a_url_that_cannot_be_asked_is_refused(url: str) -> None:
    source = AlpacaPositions(url, KEY, SECRET)
    with pytest.raises(PositionsRefused, match="MDSERVICE_TRADING_URL") as caught:
        await source.fetch()
    assert "hidden" not in str(caught.value).lower()
    await source.aclose()


async def test_alpaca_py_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mdservice.positions.alpaca_line", None)
    with pytest.raises(PositionsRefused, match="install alpaca-py"):
        await AlpacaPositions("http://host", KEY, SECRET).fetch()


def test_alpaca_py_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, mdservice.positions.alpaca as a; a.AlpacaPositions('http://h', 'k', 's');"
        "print(sorted({'alpaca', 'requests', 'httpx'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("behaviour", [webs.stall, webs.trickle_headers, webs.trickle_body])
def test_a_wait_that_is_cut_ends_at_once(web: Web, behaviour: webs.Behaviour) -> None:
    line = Line(web.url, KEY, SECRET)
    web.behaviour = behaviour

    def ask() -> None:
        with contextlib.suppress(PositionsUnavailable):  # headers that end early are an answer
            line.ask("it")

    thread = threading.Thread(target=ask)
    thread.start()
    assert web.asked.wait(5)
    started = time.monotonic()
    line.cut()
    thread.join(5)
    assert time.monotonic() - started < 1


def test_a_line_that_was_cut_asks_nothing(web: Web) -> None:
    line = Line(web.url, KEY, SECRET)
    line.cut()
    with pytest.raises(PositionsUnavailable, match="given up"):
        line.ask("it")
    assert web.paths == []


# Private names


def test_the_line_uses_these_private_names_and_no_others() -> None:
    tree = ast.parse(inspect.getsource(alpaca_line))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "_client"
    }
    assert used == {"_retry", "_session", "get_all_positions"}, "pin new ones here too"


def test_the_names_are_there() -> None:
    client = TradingClient("k", "s", raw_data=True, url_override="http://host")
    assert client._retry == 3
    assert isinstance(client._session, requests.Session)
    assert "self._retry" in inspect.getsource(rest.RESTClient._request)
    assert "self._session.request" in inspect.getsource(rest.RESTClient._one_request)


def test_requests_asks_the_adapter_for_its_pool_by_this_name() -> None:
    assert "self.get_connection_with_tls_context(" in inspect.getsource(
        requests.adapters.HTTPAdapter.send
    )


def test_connections_are_ours_with_tls_too() -> None:
    line = Line("https://host", KEY, SECRET)
    request = requests.Request("GET", "https://host/v2/positions").prepare()
    pool = line._transport.get_connection_with_tls_context(request, True)
    connection = pool._new_conn()
    assert isinstance(connection, alpaca_line._SecureConnection)
    connection.close()
    line.cut()
