"""A real Prometheus server scrapes the API."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import anyio
import httpx
import pytest
from anyio.streams.text import TextReceiveStream

from mdservice.http_api.server import serve_api
from mdservice.testing.fake_service import FakeService
from tests.integration.conftest import patient
from tests.operations.promtool import RECORDS

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus")

CONFIG = """
scrape_configs:
  - job_name: mdservice
    scrape_interval: 1s
    static_configs: [{{targets: ["{target}"]}}]
"""
LIMIT_S = 90


@asynccontextmanager
async def prometheus(target: str, folder: Path, *options: str) -> AsyncIterator[httpx.AsyncClient]:
    """A server that scrapes this target, on a free port; ends with the block."""
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(target=target))
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        *options,
    ]
    async with await anyio.open_process(command, stdout=DEVNULL, stderr=PIPE) as process:
        try:
            assert process.stderr is not None
            log = TextReceiveStream(process.stderr)
            said, found = "", None
            while found is None:
                said += await log.receive()
                found = re.search(r'"Listening on" address=(\S+)\s', said)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_read, log)
                async with httpx.AsyncClient(base_url=f"http://{found[1]}", timeout=30) as client:
                    yield client
                tasks.cancel_scope.cancel()
        finally:
            process.kill()


async def _read(log: TextReceiveStream) -> None:
    async for _ in log:
        pass


async def value(client: httpx.AsyncClient, query: str) -> float:
    """The one value of a query, as soon as there is one."""
    while True:
        answer = await client.get("/api/v1/query", params={"query": query})
        result: list[Any] = answer.json()["data"]["result"] if answer.is_success else []
        if result:
            (one,) = result
            return float(one["value"][1])
        await anyio.sleep(0.2)


async def scraped(folder: Path, *options: str, queries: dict[str, str]) -> dict[str, float]:
    found = {}
    service = FakeService()
    service.publish("AAPL", 1.0, 2.0)
    with anyio.fail_after(patient(LIMIT_S)):
        async with anyio.create_task_group() as tasks:

            async def serve(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
                await serve_api(
                    service,
                    socket=folder / "s",
                    http="127.0.0.1:0",
                    token=None,
                    task_status=task_status,
                )

            addresses = await tasks.start(serve)
            async with prometheus(str(addresses.http), folder, *options) as client:
                for name, query in queries.items():
                    found[name] = await value(client, query)
            tasks.cancel_scope.cancel()
    return found


QUERIES = {
    "counter": "mdservice_quotes_received_total",
    "labelled": 'mdservice_actor_restarts_total{actor="writer"}',
    "gauge": "mdservice_uptime_seconds",
    "process": "process_cpu_seconds_total",
    "recorded": f"count({RECORDS['mdservice:redis_write_seconds:mean2m']})",
    "classic": "count(mdservice_feed_to_redis_seconds_bucket) or vector(0)",
}


async def test_takes_native_histograms_where_it_wants_them(tmp_path: Path) -> None:
    median = "histogram_quantile(0.5, mdservice_feed_to_redis_seconds)"
    found = await scraped(
        tmp_path,
        "--enable-feature=native-histograms",
        queries={
            "median": median,
            "count": "histogram_count(mdservice_feed_to_redis_seconds)",
            "sum": "histogram_sum(mdservice_feed_to_redis_seconds)",
            "slow": "histogram_fraction(0.1, +Inf, mdservice_feed_to_redis_seconds)",
            **QUERIES,
        },
    )
    assert 2 ** (-73 / 8) < found["median"] <= 2 ** (-72 / 8)
    assert (found["count"], found["sum"]) == (10, 0.25)
    assert found["slow"] == pytest.approx(0.1)
    assert (found["counter"], found["labelled"], found["gauge"]) == (6, 2, 12.5)
    assert found["process"] > 0
    assert found["classic"] == 0
    assert found["recorded"] == 1


async def test_takes_classic_buckets_otherwise(tmp_path: Path) -> None:
    bucket = "mdservice_feed_to_redis_seconds_bucket"
    found = await scraped(
        tmp_path, queries={"median": f"histogram_quantile(0.9, {bucket})", **QUERIES}
    )
    assert found["median"] == pytest.approx(0.01)
    assert (found["counter"], found["labelled"], found["gauge"]) == (6, 2, 12.5)
    assert found["classic"] == 3
    assert found["recorded"] == 1
