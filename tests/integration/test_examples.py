"""The programs in docs/examples, run as a reader would; the gateway is in test_e2e_gateway.py."""

from __future__ import annotations

import contextlib
import re
import signal
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

import mdservice

EXAMPLES = Path(mdservice.__file__).parent.parent / "docs" / "examples"
TESTED = {
    *("execution_gateway.py", "embed_trio.py", "embed_asyncio.py", "read_prices.py"),
    *("my_prices.py", "my_pnl.py", "my_records.py", "embed_fastapi.py"),
    *("line_exchange.py", "feed_driver.py"),  # test_example_feed_driver.py
    "sqlite_store.py",  # test_example_sqlite_store.py
    "place_orders.py",  # test_e2e_orders.py
    "recorded_day.py",  # test_journal_replay.py
}


def test_every_example_is_run_by_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == TESTED


def test_twenty_lines_read_the_same_channel(stage: Any) -> None:
    text = (EXAMPLES / "read_prices.py").read_text()
    code = [line for line in text.split('"""')[2].splitlines() if line.strip()]
    assert len(code) <= 20
    simulator, valkey = stage.simulator(), stage.valkey()
    stage.service(simulator, valkey, MDSERVICE_SYMBOLS="AAPL,MSFT,TSLA").wait_ready()
    simulator.quotes(("AAPL", 187.12, 187.15))
    with valkey.client() as client:
        stage.eventually(lambda: client.get("price:AAPL"))
    reader = stage.example("read_prices.py", valkey.url, "AAPL", "MSFT")
    stage.eventually(lambda: "MSFT has no price" in reader.stdout, what=lambda: reader.said)
    simulator.quotes(("TSLA", 1, 2), ("MSFT", 5, 6))
    stage.eventually(lambda: "MSFT 5.5 " in reader.stdout, what=lambda: reader.said)
    assert reader.stdout.splitlines()[0] == "AAPL 187.135"
    assert "TSLA" not in reader.stdout


def test_a_trio_program_embeds_the_service(stage: Any) -> None:
    program = stage.example("embed_trio.py", "AAPL", "MSFT")
    found = stage.eventually(
        lambda: re.findall(r"^(AAPL|MSFT) (\S+) (\S+)$", program.stdout, re.MULTILINE),
        within=30,
        what=lambda: program.said,
    )
    assert Decimal(found[0][1]) > 0
    assert re.match(r"(subscribed|pending): AAPL, MSFT\n", program.stdout)
    assert program.end(signal.SIGINT) != 0
    assert "KeyboardInterrupt" in program.stderr


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_asyncio_program_embeds_the_service_and_ends_in_order(stage: Any, by: Any) -> None:
    program = stage.example("embed_asyncio.py", "AAPL")
    wanted = {"ready", "AAPL"}
    stage.eventually(
        lambda: wanted <= {line.split()[0] for line in program.stdout.splitlines()},
        within=30,
        what=lambda: program.said,
    )
    assert program.end(by) == 0, program.said
    assert program.stdout.endswith("\nended\n")
    assert "Traceback" not in program.stderr
    assert "events_lost" not in program.stderr


def test_programs_of_ones_own_find_the_service_of_this_machine(stage: Any) -> None:
    port = stage.free_port()
    env = {"MDSERVICE_GATEWAY_HTTP": f"127.0.0.1:{port}"}
    service = stage.program("run", **env).wait_ready()
    found = re.search(r"p&l +(http://\S+?)/api", service.stdout)
    assert found, service.said
    prices = stage.example("my_prices.py", "AAPL", folder=service.folder)
    both = stage.example("my_pnl.py", found[1], "AAPL", "MSFT", folder=service.folder)
    records = stage.example("my_records.py", "AAPL", "BTC/USD", folder=service.folder)
    for symbol in ("AAPL", "BTC/USD"):
        stage.eventually(
            lambda symbol=symbol: re.search(
                rf"^{symbol} trade \S+ at \S+$", records.stdout, re.MULTILINE
            ),
            within=30,
            what=lambda: records.said,
        )
    stage.eventually(
        lambda: re.search(r"^AAPL \d+\S* 20\S+Z$", prices.stdout, re.MULTILINE),
        what=lambda: prices.said,
    )
    stage.eventually(
        lambda: (
            re.search(r"^P&L -?\d+\S* of \d+ positions$", both.stdout, re.MULTILINE)
            and re.search(r"^MSFT \d", both.stdout, re.MULTILINE)
        ),
        what=lambda: both.said,
    )
    assert not re.search("^(?!AAPL)", prices.stdout.strip(), re.MULTILINE)

    service.end()  # and they go on when it is back
    stage.eventually(lambda: "no P&L at the moment" in both.stdout, what=lambda: both.said)
    before = both.stdout
    stage.program("run", folder=service.folder, **env).wait_ready()
    stage.eventually(
        lambda: (
            re.search("^P&L", both.stdout.removeprefix(before), re.MULTILINE)
            and re.search("^AAPL", both.stdout.removeprefix(before), re.MULTILINE)
        ),
        within=30,
        what=lambda: both.said,
    )


def test_a_fastapi_application_embeds_the_service(stage: Any) -> None:
    port = stage.free_port()
    args = ("--port", str(port), "--app-dir", str(EXAMPLES), "embed_fastapi:app")
    program = stage.python("-m", "uvicorn", *args)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

        def bid() -> Any:
            with contextlib.suppress(httpx.TransportError):
                answer = client.get("/bid/AAPL")
                return answer.json() if answer.status_code == 200 else None

        assert stage.eventually(bid, within=30, what=lambda: program.said) > 0
        assert client.get("/bid/NONE").status_code == 404
    assert program.end(signal.SIGINT) in {0, -signal.SIGINT, 130}, program.said
    assert "Traceback" not in program.stderr
