"""The page at ``/`` in a real browser, beside a service on the simulator and a real Valkey."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

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
