"""A disk that takes no byte more: of the journal, and of the file that the log goes to."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import pytest

from tests.integration.conftest import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the files of a process")


def limit_files(pid: int, most_bytes: int) -> None:
    """Let each write of a process beyond so many bytes of a file fail, as on a full disk."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most_bytes, hard))


def test_prices_go_on_and_the_journal_and_the_log_come_back(stage: Any) -> None:
    simulator, valkey = stage.simulator(), stage.valkey()
    service = stage.service(
        simulator, valkey, MDSERVICE_SYMBOLS="AAPL", MDSERVICE_JOURNAL="journal"
    ).wait_ready()

    def is_published(price: int) -> bool:
        quote = {"S": "AAPL", "bp": price, "ap": price, "t": time.time_ns()}
        simulator.send_quotes([quote])
        with valkey.client() as client:
            return f'"price":{price}' in (client.get("price:AAPL") or b"").decode()

    eventually(lambda: is_published(1))
    limit_files(service.pid, 0)
    logged = service.stderr
    try:
        # All before may have been written already.
        eventually(lambda: is_published(2) and service.status()["journal"]["last_error"])
        for price in range(3, 6):
            eventually(lambda price=price: is_published(price))
        assert service.ready()[0]
        assert service.status()["state"] == "degraded"
        assert any("journal" in reason for reason in service.status()["reasons"])
        simulator.drop()
        eventually(lambda: is_published(6), within=60)
        assert service.stderr == logged  # nothing could be written
    finally:
        limit_files(service.pid, resource.RLIM_INFINITY)
    service.until(lambda status: status["journal"]["last_error"] is None)
    service.until(lambda status: status["state"] == "running")
    eventually(lambda: "journal" in service.stderr.removeprefix(logged), what=service.said)
    assert service.end() == 0
