"""Alpaca's positions: what is sent, what is shown, and what a refusal means."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.positions.alpaca import AlpacaPositions
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


async def test_a_busy_server_is_asked_once_a_fetch(web: Web) -> None:
    source = AlpacaPositions(web.url, KEY, SECRET)
    for status in (429, 504):
        web.status = status
        with pytest.raises(PositionsUnavailable, match=f"HTTP {status}"):
            await source.fetch()
    await source.aclose()
    assert len(web.paths) == 2


async def test_compression_that_was_not_asked_for_is_refused(web: Web) -> None:
    web.behaviour = webs.bad_compression
    source = AlpacaPositions(web.url, KEY, SECRET)
    with pytest.raises(PositionsRefused, match="without compression"):
        await source.fetch()
    await source.aclose()


@pytest.mark.parametrize("url", ["http://", "http://me:hidden@/", "ftp://host"])
def test_a_url_that_cannot_be_asked_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AlpacaPositions(url, KEY, SECRET)
    assert "hidden" not in str(caught.value).lower()


def test_no_http_library_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, mdservice.positions.alpaca as a; a.AlpacaPositions('http://h', 'k', 's');"
        "print(sorted({'alpaca', 'requests', 'httpx'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
