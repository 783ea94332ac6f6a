"""A real Prometheus with the configuration, rules and secrets of the containers, and a real service."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from mdservice.redis_io.embedded import find_server
from tests.integration.conftest import Stage, eventually
from tests.operations.board import TARGETS, expression

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations"
PROMETHEUS = shutil.which("prometheus")
LIMIT_S = 90.0


def run(stage: Stage, command: list[str], log: Path) -> Callable[[], None]:
    """Run a program until the end of the test, or until the returned function is called."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )

    def end() -> None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()

    stage.defer(end)
    return end


def make_secrets(folder: Path) -> dict[str, str]:
    """Make the secrets of the containers; return the settings."""
    script = shutil.copy2(OPERATIONS / "docker" / "make-secrets.sh", folder)
    subprocess.run([script], check=True, timeout=30)
    text = (folder / "secrets" / "mdservice.env").read_text()
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def start_valkey(stage: Stage, folder: Path, url: str) -> tuple[str, Callable[[], None]]:
    """Run Valkey as the container does, on a UNIX socket; its URL with the password, and its end."""
    config = (OPERATIONS / "docker" / "valkey.conf").read_text()
    file, socket = folder / "valkey.conf", folder / "v"
    file.write_text(config.replace("/run/secrets", str(folder / "secrets")))
    command = [str(find_server()), str(file), "--port", "0", "--unixsocket", str(socket)]
    end = run(stage, command, folder / "valkey.log")
    eventually(socket.exists, what=(folder / "valkey.log").read_text)
    password = url.partition("://:")[2].partition("@")[0]
    return f"unix://:{password}@{socket}", end


def test_valkey_asks_for_the_password_and_keeps_nothing(stage: Stage) -> None:
    folder = stage.folder()
    url, _ = start_valkey(stage, folder, make_secrets(folder)["MDSERVICE_REDIS_URL"])
    with redis.Redis.from_url(url) as client:
        assert client.ping()
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    with (
        redis.Redis.from_url(f"unix://{folder / 'v'}") as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def start_prometheus(
    stage: Stage, folder: Path, targets: dict[str, str], secrets: Path
) -> httpx.Client:
    """Run Prometheus with the shipped files, but every time in them is seconds.

    Args:
        stage: Ends it.
        folder: Has its files.
        targets: The ``host:port`` here, by that of the containers.
        secrets: The folder of the secrets.
    """
    config = folder / "prometheus"
    shutil.copytree(OPERATIONS / "prometheus", config)
    text = (config / "prometheus.yml").read_text()
    for there, here in {**targets, "/run/secrets": str(secrets), "15s": "1s"}.items():
        assert there in text
        text = text.replace(there, here)
    (config / "prometheus.yml").write_text(text)
    rules = (config / "alerts.yml").read_text()
    rules = re.sub(r"(?<=\bfor: )\w+", "1s", rules)
    (config / "alerts.yml").write_text(re.sub(r"\[\w+\]", "[5s]", rules))
    address = f"127.0.0.1:{stage.free_port()}"
    command = [
        str(PROMETHEUS),
        f"--config.file={config / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    run(stage, command, folder / "prometheus.log")
    client = httpx.Client(base_url=f"http://{address}/api/v1", timeout=30)
    stage.defer(client.close)

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return client.get("/status/buildinfo").is_success
        return False

    eventually(answers, within=LIMIT_S, what=(folder / "prometheus.log").read_text)
    return client


def query(prometheus: httpx.Client, expr: str) -> list[dict[str, Any]]:
    answer = prometheus.get("/query", params={"query": expr})
    assert answer.is_success, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def missing_labels(target: dict[str, Any], found: list[dict[str, Any]]) -> set[str]:
    """The labels that the legend names and the series do not have."""
    named = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
    return named - set.intersection(*(set(series["metric"]) for series in found))


@pytest.mark.skipif(PROMETHEUS is None, reason="needs Debian's package `prometheus`")
def test_prometheus_fills_the_board_and_alerts_fire(stage: Stage) -> None:
    folder = stage.folder()
    given = make_secrets(folder)
    url, stop_valkey = start_valkey(stage, folder, given["MDSERVICE_REDIS_URL"])
    simulator = stage.simulator(rate=200, positions={"AAPL": (Decimal(10), Decimal(150))})
    http, gateway = (f"127.0.0.1:{stage.free_port()}" for _ in range(2))
    given = stage.account(simulator, url, MDSERVICE_API_TOKEN=given["MDSERVICE_API_TOKEN"])
    service = stage.program(
        "run",
        MDSERVICE_HTTP=http,
        MDSERVICE_RELAY=f"127.0.0.1:{stage.free_port()}",
        MDSERVICE_JOURNAL=str(folder / "journal"),
        MDSERVICE_SYMBOLS="AAPL,MSFT",
        MDSERVICE_POSITIONS="alpaca",
        **given,
    )
    service.wait_ready()
    stage.program(
        "gateway",
        folder=service.folder,
        MDSERVICE_GATEWAY_HTTP=gateway,
        MDSERVICE_LIMITS="AAPL qty > 100",
        **given,
    )
    targets = {"mdservice:8001": http, "gateway:8002": gateway}
    prometheus = start_prometheus(stage, folder, targets, folder / "secrets")

    def health() -> dict[str, str]:
        found = prometheus.get("/targets").json()["data"]["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in found}

    both_up = {"mdservice": "up", "mdservice-gateway": "up"}
    eventually(lambda: health() == both_up, within=LIMIT_S, what=health)

    # Without an alert, the table of those that fire is empty.
    waiting = [target for _, target in TARGETS if "ALERTS" not in target["expr"]]

    def filled() -> bool:
        for target in list(waiting):
            found = query(prometheus, expression(target, "10s"))
            if found:
                assert missing_labels(target, found) == set(), target
                waiting.remove(target)
        return not waiting

    eventually(filled, within=LIMIT_S, what=lambda: waiting)

    def firing() -> set[str]:
        found = prometheus.get("/alerts").json()["data"]["alerts"]
        return {a["labels"]["alertname"] for a in found if a["state"] == "firing"}

    (table,) = (target for _, target in TARGETS if "ALERTS" in target["expr"])

    def listed() -> set[str]:
        return {found["metric"]["alertname"] for found in query(prometheus, expression(table))}

    for alert, stop in (
        ("MdserviceFeedDown", simulator.close),
        ("MdserviceRedisDown", stop_valkey),
    ):
        assert alert not in firing()
        stop()
        eventually(lambda name=alert: name in firing(), within=LIMIT_S, what=firing)
        eventually(lambda name=alert: name in listed(), within=LIMIT_S, what=listed)
