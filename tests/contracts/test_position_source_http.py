"""What every source of positions over HTTP does, however the server behaves."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from mdservice.positions import sources as source_module
from mdservice.positions.sources import AlpacaPositions, HttpPositions, PositionSource
from tests.positions import web as webs
from tests.positions.places import (
    OVER_HTTP,
    SECRET,
    SHORT_LIMIT_S,
    OverHttp,
    position,
    refused,
    row,
    sources,
    unavailable,
)


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "FETCH_LIMIT_S", SHORT_LIMIT_S)


@sources(OVER_HTTP)
async def test_one_connection_is_kept(place: OverHttp) -> None:
    place.hold([row()])
    for _ in range(5):
        await place.source.fetch()
    assert (place.web.connections, len(place.web.paths)) == (1, 5)


@sources(OVER_HTTP)
async def test_statuses_worth_another_try(place: OverHttp) -> None:
    for status in (408, 425, 429, 500, 502, 503, 504, 599):
        place.web.status = status
        place.web.extra = {"Retry-After": "60"}
        before = len(place.web.paths)
        with anyio.fail_after(30):
            assert f"HTTP {status}" in await unavailable(place.source)
        assert len(place.web.paths) == before + 1, "it was asked again behind our back"


@sources(OVER_HTTP)
async def test_statuses_that_a_person_has_to_look_at(place: OverHttp) -> None:
    for status in (400, 401, 403, 404, 405, 410, 422):
        place.web.status = status
        text = await refused(place.source)
        assert f"HTTP {status}" in text
        assert "check" in text


@sources(OVER_HTTP)
async def test_an_answer_without_positions_in_it_is_refused(place: OverHttp) -> None:
    for status in (202, 203):
        place.web.status = status
        assert f"HTTP {status}" in await refused(place.source)


@sources(OVER_HTTP)
async def test_redirects_are_not_followed(place: OverHttp) -> None:
    for status in (301, 302, 303, 307, 308):
        place.web.status = status
        place.web.extra = {"Location": f"{place.web.url}/elsewhere"}
        assert "redirect" in await refused(place.source)
    assert "/elsewhere" not in place.web.paths


@sources(OVER_HTTP)
async def test_no_content_is_no_positions(place: OverHttp) -> None:
    place.hold([row()])
    await place.source.fetch()
    place.web.body, place.web.status = b"", 204
    for _ in range(2):
        assert list(await place.source.fetch()) == []


@sources(OVER_HTTP)
async def test_an_answer_that_is_no_positions_is_refused(place: OverHttp) -> None:
    for body in (b"<html>login</html>", b"{}", b'{"code": 1}', b"3", b"\x00\xff", b"[1,]"):
        place.hold(body)
        await refused(place.source)


@sources(OVER_HTTP)
async def test_an_answer_that_ends_early_is_unavailable(place: OverHttp) -> None:
    for behaviour in (webs.cut_body, webs.cut_body_of_no_length, webs.hang_up):
        place.web.behaviour = behaviour
        await unavailable(place.source)
    place.hold(b"")
    await unavailable(place.source)
    place.hold([row()])
    assert list(await place.source.fetch()) == [position()]


@sources(OVER_HTTP)
async def test_what_is_no_http_is_unavailable(place: OverHttp) -> None:
    place.web.behaviour = webs.no_http
    await unavailable(place.source)
    place.hold([row()])
    assert list(await place.source.fetch()) == [position()]


@sources(OVER_HTTP)
async def test_far_too_much_is_refused(place: OverHttp) -> None:
    place.web.behaviour = webs.endless
    assert "16 MiB" in await refused(place.source)
    place.hold(b" " * (17 * 2**20))
    assert "16 MiB" in await refused(place.source)
    place.hold([row()] * 20_001)
    assert "20,001" in await refused(place.source)
    place.hold([row()])
    assert list(await place.source.fetch()) == [position()]


@sources(OVER_HTTP)
async def test_many_positions_are_read(place: OverHttp) -> None:
    place.hold([row()] * 10_000)
    assert len(await place.source.fetch()) == 10_000


@pytest.mark.usefixtures("short_limit")
@sources(OVER_HTTP)
async def test_a_trickle_is_cut_off_in_time(place: OverHttp) -> None:
    for behaviour in (webs.trickle_headers, webs.trickle_body):
        place.web.behaviour = behaviour
        started_s = anyio.current_time()
        await unavailable(place.source)
        assert anyio.current_time() - started_s <= SHORT_LIMIT_S + 1
    place.hold([row()])
    assert list(await place.source.fetch()) == [position()]


@sources(OVER_HTTP)
async def test_what_a_cancelled_fetch_began_ends_at_once(place: OverHttp) -> None:
    place.web.behaviour = webs.trickle_body
    threads = threading.active_count()
    with anyio.move_on_after(0.2):
        await place.source.fetch()
    deadline_s = time.monotonic() + 3
    while place.web.open and time.monotonic() < deadline_s:
        await anyio.sleep(0.01)
    assert place.web.open == 0, "the connection is still open"
    assert threading.active_count() <= threads + 2


@sources(OVER_HTTP)
async def test_a_server_that_is_not_there_is_unavailable(place: OverHttp) -> None:
    url = webs.nowhere()
    source: PositionSource = (
        AlpacaPositions(url, "PKHIDDEN", SECRET)
        if isinstance(place.source, AlpacaPositions)
        else HttpPositions(url)
    )
    assert "cannot be read" in await unavailable(source)
    await source.aclose()
