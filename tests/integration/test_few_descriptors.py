"""More clients than the process may have open files."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from typing import Any

from tests.integration.conftest import eventually

FILES = 128
FEW = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
from mdservice.cli import main
main()
"""


def test_clients_that_take_all_descriptors_leave_the_feed_and_redis_theirs(stage: Any) -> None:
    simulator, valkey = stage.simulator(), stage.valkey()
    http, relay = stage.free_port(), stage.free_port()
    service = stage.python(
        "-c",
        FEW,
        "run",
        **stage.account(
            simulator,
            valkey,
            MDSERVICE_SYMBOLS="AAPL",
            MDSERVICE_HTTP=f"127.0.0.1:{http}",
            MDSERVICE_RELAY=f"127.0.0.1:{relay}",
        ),
    ).wait_ready()
    with ExitStack() as clients:
        for _ in range(FILES):
            for port in (http, relay):
                clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            caller = clients.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            caller.connect_ex(str(service.socket))
        with valkey.client() as client:
            simulator.drop()
            client.execute_command("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "yes")
            client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")

            def is_written() -> bool:
                simulator.send_quotes([{"S": "AAPL", "bp": 1, "ap": 3, "t": time.time_ns()}])
                return client.exists("price:AAPL") == 1

            client.delete("price:AAPL")
            # Long before the API closes idle clients
            eventually(is_written, within=15, what=lambda: service.said)
    service.wait_ready(60)
    assert len(service.stderr.splitlines()) < 150
    assert service.end() == 0
