"""What the pages' readers share: an account at a simulator that stands for Alpaca."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.docs.fences import ROOT, blocks_of_page
from tests.docs.reader import open_reader

_START_LIMIT_S = 60.0


@pytest.fixture(scope="module")
def simulated_account(tmp_path_factory: Any) -> Iterator[tuple[str, str]]:
    """The addresses of its stream and of its REST API; any key is good."""
    said = tmp_path_factory.mktemp("simulator") / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mdservice", "simulate", "--port", "0", "--rate", "200"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _START_LIMIT_S
        while not (found := re.search(r"ws(://127\.0\.0\.1:\d+)\S*", said.read_text())):
            assert time.monotonic() < deadline, said.read_text()
            assert process.poll() is None, said.read_text()
            time.sleep(0.02)
        yield found[0], f"http{found[1]}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.fixture
def follow(shared_valkey: Any, simulated_account: tuple[str, str]) -> Callable[[Path], None]:
    """Follows a page."""

    def follow_page(page: Path) -> None:
        if shutil.which("curl") is None and "curl " in page.read_text():
            pytest.skip("the page's reader needs curl")
        with ExitStack() as stack:
            reader = stack.enter_context(open_reader(type(shared_valkey)(), simulated_account))
            reader.follow(blocks_of_page(page))

    return follow_page
