"""The page at ``/`` in a real browser, beside a service on the simulator and a real Valkey."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import msgspec
import pytest
from anyio.abc import TaskStatus
from anyio.from_thread import start_blocking_portal

from mdservice.http_api.server import serve_api
from mdservice.model.events import FeedStatus
from mdservice.model.status import (
    ActorReport,
    ChannelCounters,
    Inbox,
    RelayClient,
    RelayStatus,
    Status,
)
from mdservice.testing.fake_service import FakeService
from tests.integration.browser import Browser, find_chromium, open_browser

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs chromium")

T0 = 1_795_189_904 * 10**9


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with open_browser(tmp_path / "browser") as browser:
        yield browser


def row(symbol: str, column: int) -> str:
    """An expression for the text of a cell in the table of prices."""
    return f"document.querySelector('tr[data-symbol=\"{symbol}\"]')?.cells[{column}].innerText"


def a_service(stage: Any, **env: str) -> tuple[Any, Any, str]:
    simulator, port = stage.simulator(), stage.free_port()
    env = {"MDSERVICE_SYMBOLS": "AAPL", "MDSERVICE_CHANNELS": "quotes,statuses"} | env
    service = stage.service(
        simulator, stage.valkey(), MDSERVICE_HTTP=f"127.0.0.1:{port}", **env
    ).wait_ready()
    return simulator, service, f"http://127.0.0.1:{port}/"


def test_quotes_halts_subscriptions_and_nothing_from_other_hosts(
    stage: Any, browser: Browser
) -> None:
    simulator, _service, url = a_service(stage)
    browser.open(url)
    browser.until("document.getElementById('state').innerText === 'running'")
    simulator.quotes(("AAPL", 187.12, 187.15, T0))
    browser.until(f"{row('AAPL', 1)} === '187.135'")
    assert browser.value(row("AAPL", 3)) == "1.6 bp"
    simulator.quotes(("AAPL", 188.12, 188.15, T0 + 1))
    browser.until(f"{row('AAPL', 2)} === '+0.53 %'")

    simulator.halt("AAPL")
    browser.until(f"{row('AAPL', 0)}.includes('halted')")
    simulator.resume_trading("AAPL")
    browser.until(f"!{row('AAPL', 0)}.includes('halted')")

    browser.value("document.getElementById('symbol').focus()")
    browser.call("Input.insertText", text="msft, nope!")
    for kind in ("keyDown", "keyUp"):
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        browser.call("Input.dispatchKeyEvent", type=kind, **enter)
    browser.until("document.getElementById('answer').innerText.toLowerCase().includes('nope!')")
    browser.faults = [fault for fault in browser.faults if "422" not in fault]  # the browser's own
    browser.value("document.getElementById('symbol').value = 'msft'")
    browser.value("document.querySelector('#subscribe button').click()")
    browser.until("document.querySelector('tr[data-symbol=MSFT]')")
    browser.value("document.querySelector('tr[data-symbol=MSFT] button').click()")
    browser.until("!document.querySelector('tr[data-symbol=MSFT]')")

    simulator.drop()
    browser.until("document.getElementById('events').innerText.includes('stocks disconnected')")
    browser.until("document.getElementById('events').innerText.includes('stocks connected')")
    assert "feed connection" in browser.text()
    assert browser.faults == []
    assert [asked for asked in browser.asked if not asked.startswith(url)] == []


def test_a_restart_of_the_service_is_survived(stage: Any, browser: Browser) -> None:
    simulator, valkey, port = stage.simulator(), stage.valkey(), stage.free_port()
    env = {"MDSERVICE_SYMBOLS": "AAPL", "MDSERVICE_HTTP": f"127.0.0.1:{port}"}
    service = stage.service(simulator, valkey, **env).wait_ready()
    browser.open(f"http://127.0.0.1:{port}/")
    simulator.quotes(("AAPL", 1, 3, T0))
    browser.until(f"{row('AAPL', 1)} === '2.00'")
    assert service.end() == 0
    browser.until("document.getElementById('state').innerText.startsWith('no answer')")
    stage.service(simulator, valkey, **env).wait_ready()
    browser.until("document.getElementById('state').innerText === 'running'")
    simulator.quotes(("AAPL", 2, 4, T0 + 1))
    browser.until(f"{row('AAPL', 1)} === '3.00'")


def test_it_asks_for_the_token_and_remembers_it(stage: Any, browser: Browser) -> None:
    simulator, _service, url = a_service(stage, MDSERVICE_API_TOKEN="let-me-see")
    browser.open(url)
    browser.until("!document.getElementById('login').hidden")
    browser.value("document.getElementById('token').value = 'let-me-see'")
    browser.value("document.querySelector('#login button').click()")
    browser.until("document.getElementById('state').innerText === 'running'")
    assert browser.value("document.getElementById('login').hidden")
    simulator.quotes(("AAPL", 1, 3, T0))
    browser.until(f"{row('AAPL', 1)} === '2.00'")
    browser.open(url)
    browser.until("document.getElementById('state').innerText === 'running'")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_the_window(stage: Any, browser: Browser, width: int) -> None:
    _simulator, _service, url = a_service(stage, MDSERVICE_SYMBOLS="AAPL,AAPL281215C00200000")
    browser.look(width=width, dark=width == 390)
    browser.open(url)
    browser.until("document.querySelectorAll('#price-table tbody tr').length === 2")
    assert browser.value("document.documentElement.scrollWidth") <= width
    dark = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 28)"
    assert dark is (width == 390)


def test_the_simulator_has_a_page_with_profit_and_loss(stage: Any, browser: Browser) -> None:
    service = stage.program("run").wait_ready()
    (url,) = [word for word in service.said.split() if word.endswith("/") and "http://" in word]
    browser.open(url)
    browser.until("document.querySelectorAll('#position-table tbody tr').length > 2")
    browser.until("document.querySelectorAll('#price-table tbody tr').length > 2")
    browser.until("document.getElementById('totals').innerText.includes('unrealised')")
    assert browser.faults == []


def test_the_policy_forbids_other_hosts_and_scripts_in_the_page(stage: Any) -> None:
    _simulator, _service, url = a_service(stage)
    answer = httpx.get(url, trust_env=False)
    assert answer.headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'"
    )
    assert "unsafe" not in answer.headers["content-security-policy"]
    for name in ("page.css", "page.js", "view.js", "icon.svg"):
        assert httpx.get(f"{url}page/{name}", trust_env=False).status_code == 200


def test_limits_that_another_gateway_judges_are_shown(stage: Any, browser: Browser) -> None:
    held, gateway_port = stage.folder() / "held.json", stage.free_port()
    held.write_text('[{"symbol": "AAPL", "qty": 10, "avg_entry_price": "100"}]')
    shared = {
        "MDSERVICE_POSITIONS": f"file:{held}",
        "MDSERVICE_GATEWAY_HTTP": f"127.0.0.1:{gateway_port}",
    }
    simulator, service, url = a_service(stage, **shared)
    browser.open(url)
    browser.until("document.querySelector('#position-table').innerText.includes('AAPL')")
    assert browser.value("document.getElementById('breaker').hidden")
    limits = "AAPL qty > 15; AAPL price > 150"
    stage.program("gateway", folder=service.folder, MDSERVICE_LIMITS=limits, **shared)
    browser.until("document.getElementById('blind').innerText.includes('AAPL')")
    simulator.quotes(("AAPL", 120, 120, time.time_ns()))
    browser.until("document.getElementById('breaker').innerText === 'the breaker is closed'")
    browser.until("document.getElementById('limits').innerText.includes('80 %')")
    simulator.quotes(("AAPL", 160, 160, time.time_ns()))
    browser.until("document.getElementById('breaker').innerText.includes('tripped: AAPL price')")
    assert browser.faults == []


MARKUP = (
    '"><img src=x onerror="window.hit = 1"><script>window.hit = 1</script>\'><svg onload=hit=1>'
)


class HostileService(FakeService):
    """Has markup wherever a text comes from outside, or could."""

    def status(self) -> Status:
        feed = attrs.evolve(super().status().feed, name=f"feed {MARKUP}", last_error=MARKUP)
        client = RelayClient(
            name=f"client {MARKUP}", address=MARKUP, path=f"path {MARKUP}", encoding="json",
            connected_s=1, symbols=1, sent=1, rate=1, backlog=1, conflated=1,
        )  # fmt: skip
        return attrs.evolve(
            super().status(),
            reasons=(f"reason {MARKUP}",),
            feed=feed,
            feeds={f"connected {MARKUP}": feed},
            actors={f"actor {MARKUP}": ActorReport("running", 0, 1.0, Inbox(0, 1), MARKUP)},
            channels={f"channel {MARKUP}": ChannelCounters()},
            relay=RelayStatus(
                address=f"relay {MARKUP}", clients=(client,), cut=0, messages=0, conflated=0
            ),
        )

    def subscriptions(self) -> dict[str, list[str]]:
        return {f"symbol {MARKUP}": [f"source {MARKUP}"]}

    def left_out(self) -> dict[str, dict[str, str]]:
        return {f"left out {MARKUP}": {"quotes": MARKUP}}


class HostileAccount:
    async def whole(self) -> bytes:
        row = {"symbol": f"position {MARKUP}", "qty": 1, "status": "live", "problem": MARKUP}
        account = {"positions": [row], "warnings": [f"warning {MARKUP}"], "total_unrealized_pnl": 1}
        return msgspec.json.encode(account)

    async def risk(self) -> bytes:
        breaker = {"state": "tripped", "rule": f"rule {MARKUP}", "subject": MARKUP}
        limit = {"rule": f"limit {MARKUP}", "subject": MARKUP, "value": 1, "used": 0.5}
        risk = {"breaker": breaker, "limits": [limit], "blind": [f"blind {MARKUP}"]}
        return msgspec.json.encode(risk)


PLACES = (
    *("reason", "feed", "connected", "actor", "channel", "client", "path", "relay", "symbol"),
    *("left out", "position", "warning", "rule", "limit", "blind", "gap of"),
)


@pytest.fixture
def hostile_url(tmp_path: Path) -> Iterator[str]:
    service = HostileService()
    service.announce(
        FeedStatus(
            "gap", T0, {"reason": f"gap of {MARKUP}", "channel": MARKUP, "symbols": [MARKUP]}
        )
    )

    async def serve(*, task_status: TaskStatus[Any]) -> None:
        await serve_api(
            service,
            socket=tmp_path / "s",
            http="127.0.0.1:0",
            account=HostileAccount(),
            task_status=task_status,
        )

    with start_blocking_portal("trio") as portal:
        future, addresses = portal.start_task(serve)
        try:
            yield f"http://{addresses.http}/"
        finally:
            future.cancel()


def test_markup_in_any_text_is_shown_as_text(hostile_url: str, browser: Browser) -> None:
    browser.open(hostile_url)
    for place in PLACES:
        marked = json.dumps(f"{place} {MARKUP}".replace("_", " "))
        browser.until(f"document.body.textContent.includes({marked})")
    found = browser.value(
        "document.querySelectorAll('img, body script:not([src]), svg[onload]').length"
    )
    assert (found, browser.value("window.hit ?? null"), browser.faults) == (0, None, [])


def test_the_policy_stops_a_script_that_reaches_the_page(
    hostile_url: str, browser: Browser
) -> None:
    browser.open(hostile_url)
    browser.value(
        "addEventListener('securitypolicyviolation', (e) => (window.told ??= []).push(e.violatedDirective))"
    )
    browser.value(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(MARKUP)})")
    browser.until("window.told?.some((one) => one.startsWith('script-src'))")
    browser.value(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 1'}))"
    )
    browser.until("window.told.filter((one) => one.startsWith('script-src')).length > 1")
    assert browser.value("window.hit ?? null") is None
