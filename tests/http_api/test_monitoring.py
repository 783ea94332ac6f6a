"""Health, status and metrics, and the description of all calls."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal

import anyio
import attrs
import httpx
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from mdservice.http_api import schemas
from mdservice.model.position import Position
from mdservice.model.status import Counters
from mdservice.observability.metrics import StatusCollector, metrics_registry, render_metrics
from mdservice.testing.fake_service import FakeService

NO_POSITION = Position("?!", None, None, problem="has no valid symbol")
BASE = "/api/v1/market-data"


async def test_ready_is_503_with_every_reason_until_feed_and_redis_answer(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": []})
    service.feed_connected = service.redis_connected = False
    answer = await client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "reasons": ["the feed is not connected", "Redis does not answer"],
    }


async def test_live_depends_on_the_watchdog_alone(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    service.feed_connected = False
    answer = await client.get("/health/live")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": []})
    service.alive = False
    answer = await client.get("/health/live")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "reasons": ["the watchdog does not run"]}


async def test_status_has_the_agreed_fields(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    await service.subscribe("AAPL")
    service.publish("AAPL", 1.0, 2.0)
    status = (await client.get("/status")).json()
    assert status["state"] == "running"
    assert {"name", "driver", "connected", "reconnects", "last_error"} <= status["feed"].keys()
    assert {"connected", "url", "last_error"} <= status["redis"].keys()
    assert status["symbols"] == 1
    assert status["uptime_s"] == 12.5
    assert status["actors"]["writer"]["inbox"] == {"used": 0, "size": 8}
    assert status["actors"]["writer"]["restarts"] == 2
    assert status["counters"]["quotes_received"] == 6
    assert status["latency_ms"]["feed_to_redis"] == {"p50": 1.5, "p99": 4.0, "max": 9.0}
    assert status["latency_ms"]["receive_to_redis"] == {"p50": None, "p99": None, "max": None}


async def test_metrics_have_every_counter_and_gauge(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    service.publish("AAPL", 1.0, 2.0)
    service.redis_connected = False
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found["mdservice_quotes_received_total",] == 6
    assert found["mdservice_gaps_total",] == 2
    assert found["mdservice_feed_connected",] == 1
    assert found["mdservice_redis_connected",] == 0
    assert found["mdservice_backlog_events",] == 7
    assert found["mdservice_uptime_seconds",] == 12.5
    assert found["mdservice_event_loop_lag_seconds",] == 0.002
    assert found["mdservice_actor_inbox_used", ("actor", "router")] == 3
    assert found["mdservice_actor_inbox_size", ("actor", "router")] == 1000
    assert found["mdservice_actor_heartbeat_age_seconds", ("actor", "writer")] == 4
    assert found["mdservice_actor_restarts_total", ("actor", "writer")] == 2
    assert found["mdservice_actor_running", ("actor", "router")] == 1
    assert found["mdservice_actor_running", ("actor", "writer")] == 0
    assert found["mdservice_state", ("state", "degraded")] == 1
    assert found["mdservice_state", ("state", "running")] == 0
    bucket = "mdservice_feed_to_redis_seconds_bucket"
    assert [found[bucket, ("le", le)] for le in ("0.002", "0.01", "+Inf")] == [7, 9, 10]
    assert found["mdservice_feed_to_redis_seconds_count",] == 10
    assert found["mdservice_feed_to_redis_seconds_sum",] == 0.25
    assert found["mdservice_redis_write_seconds_count",] == 4
    assert found["mdservice_backlog_limit_events",] == 100_000
    assert found["mdservice_connection_silent_total", ("feed", "stocks")] == 3
    phase = "mdservice_connection_phase"
    assert found[phase, ("feed", "stocks"), ("phase", "streaming")] == 1
    assert found[phase, ("feed", "stocks"), ("phase", "waiting")] == 0
    assert ("process_resident_memory_bytes",) in found
    assert [key for key in found if key[0] == "mdservice_build_info"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus' promtool")
async def test_prometheus_finds_no_fault_in_the_metrics(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    service.publish("AAPL", 1.0, 2.0)
    text = (await client.get("/metrics")).text
    command = ["promtool", "check", "metrics"]
    done = await anyio.run_process(command, input=text.encode(), check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")


async def test_a_counter_means_the_same_in_the_status_and_the_metrics(
    client: httpx.AsyncClient,
) -> None:
    families = list(text_string_to_metric_families((await client.get("/metrics")).text))
    metrics = {
        family.name.removeprefix("mdservice_"): family.documentation
        for family in families
        if family.type == "counter"
    }
    description = (await client.get("/openapi.json")).json()
    schema = description["components"]["schemas"]["_Counters"]["properties"]
    status = (await client.get("/status")).json()
    assert schema.keys() == status["counters"].keys() == attrs.fields_dict(Counters).keys()
    for counter in attrs.fields(Counters):
        meaning = counter.metadata["meaning"]
        assert metrics[counter.name] == schema[counter.name]["description"] == meaning


async def test_metrics_name_the_error_with_which_redis_refuses(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    assert "mdservice_redis_refuses{" not in (await client.get("/metrics")).text
    service.redis_accepts = False
    text = (await client.get("/metrics")).text
    assert 'mdservice_redis_refuses{code="READONLY"} 1.0' in text


@pytest.mark.parametrize("text", ['"', "\\", "a\nb", 'x"} 1\nforged{a="', "\r\x1b\u2028é", "\\n"])
@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text;version=1.0.0"])
def test_any_text_in_a_label_is_read_back_as_it_was(service: FakeService, text: str, accept: str) -> None:  # fmt: skip
    status = service.status()
    feed = attrs.evolve(status.feed, name=text)
    hostile = attrs.evolve(
        status, feed=feed, feeds={text: feed}, redis=attrs.evolve(status.redis, refusal=text)
    )
    content, _ = render_metrics(metrics_registry(StatusCollector(lambda: hostile)), accept)
    read = text_string_to_metric_families if "plain" in accept else open_metrics_families
    labels = {
        (family.name, value)
        for family in read(content.decode())
        for sample in family.samples
        for value in sample.labels.values()
    }
    for name in ("mdservice_redis_refuses", "mdservice_connection_up", "mdservice_feed_info"):
        assert (name, text) in labels or (f"{name}_info", text) in labels


async def test_metrics_are_read_again_at_each_scrape(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    assert "mdservice_quotes_accepted_total 0.0" in (await client.get("/metrics")).text
    service.publish("AAPL", 1.0, 2.0)
    assert "mdservice_quotes_accepted_total 1.0" in (await client.get("/metrics")).text


async def test_metrics_come_as_openmetrics_where_asked_for(client: httpx.AsyncClient) -> None:
    accept = "application/openmetrics-text;version=1.0.0"
    answer = await client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in open_metrics_families(answer.text)}
    assert "mdservice_quotes_received" in names


async def test_metrics_come_as_protobuf_where_the_scraper_prefers_that(
    client: httpx.AsyncClient,
) -> None:
    accept = (
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
        "encoding=delimited,text/plain;version=0.0.4;q=0.5"
    )
    answer = await client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("application/vnd.google.protobuf; proto=")
    assert b"mdservice_quotes_received_total" in answer.content


async def test_the_description_lists_every_call_with_examples(client: httpx.AsyncClient) -> None:
    answer = await client.get("/openapi.json")
    description = json.loads(answer.content)
    assert description["openapi"].startswith("3.")
    calls = {
        (method.upper(), path)
        for path, methods in description["paths"].items()
        for method in methods
    }
    assert calls == {
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/status"),
        ("GET", "/metrics"),
        ("POST", f"{BASE}/subscribe"),
        ("POST", f"{BASE}/unsubscribe"),
        ("GET", f"{BASE}/subscriptions"),
        ("GET", f"{BASE}/prices"),
        ("GET", f"{BASE}/prices/{{symbol}}"),
        ("GET", f"{BASE}/latest/{{channel}}"),
        ("GET", f"{BASE}/latest/{{channel}}/{{symbol}}"),
        ("GET", f"{BASE}/news"),
        ("GET", f"{BASE}/stream"),
        ("GET", "/api/v1/positions"),
    }
    subscribe = description["paths"][f"{BASE}/subscribe"]["post"]
    assert subscribe["requestBody"]["content"]["application/json"]["example"] == {
        "symbols": ["AAPL", "MSFT"],
        "channels": ["quotes", "trades"],
    }
    assert {"200", "409", "413", "422"} <= subscribe["responses"].keys()
    assert "HTTPValidationError" not in answer.text


async def test_every_answer_has_the_described_fields(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    service.publish("AAPL", 187.12, 187.15)
    await service.subscribe("AAPL")
    service.held = [Position("AAPL", Decimal("-1.5"), Decimal("150.00")), NO_POSITION]
    for path, schema in (
        ("/health/live", schemas.HealthAnswer),
        ("/health/ready", schemas.HealthAnswer),
        ("/status", schemas.StatusAnswer),
        (f"{BASE}/subscriptions", schemas.SubscriptionsAnswer),
        (f"{BASE}/prices", schemas.PricesAnswer),
        (f"{BASE}/prices/AAPL", schemas.PriceAnswer),
        (f"{BASE}/prices/NONE", schemas.Problem),
        ("/api/v1/positions", schemas.PositionsAnswer),
    ):
        # A field too many is refused by the schema, one too few as missing.
        schema.model_validate_json((await client.get(path)).content, strict=True)
    answer = await client.post(f"{BASE}/subscribe?symbol=AAPL")
    schemas.SubscriptionAnswer.model_validate_json(answer.content, strict=True)


@pytest.mark.parametrize("path", ["/page", "/docs", "/redoc", "/status/", "/api/v1/market-data"])
async def test_unknown_paths_are_404(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json() == {"detail": "Not Found"}


async def test_a_wrong_method_is_405(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"{BASE}/subscribe")).status_code == 405


async def test_no_answer_invites_other_origins(client: httpx.AsyncClient) -> None:
    answer = await client.get("/status", headers={"origin": "http://elsewhere.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_positions_are_reported_exactly_as_they_came(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    held = Position("AAPL", Decimal("-1.5"), Decimal("150.00"), current_price=Decimal("187.130"))
    service.held = [held, NO_POSITION]
    answer = await client.get("/api/v1/positions")
    assert answer.content == (
        b'{"positions":[{"symbol":"AAPL","qty":-1.5,"avg_entry_price":150.00,'
        b'"asset_class":"us_equity","multiplier":1,"current_price":187.130,"lastday_price":null},'
        b'{"symbol":"?!","qty":null,"avg_entry_price":null,"asset_class":"us_equity",'
        b'"multiplier":1,"current_price":null,"lastday_price":null,'
        b'"problem":"has no valid symbol"}]}'
    )


async def test_metrics_show_the_positions(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    assert "mdservice_positions_up 1.0" in text
    assert "mdservice_positions_left_out 1.0" in text
    assert "mdservice_positions_age_seconds 1.5" in text


async def test_metrics_show_the_journal(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    for line in (
        "mdservice_journal_written_total 1000.0",
        "mdservice_journal_dropped_total 5.0",
        "mdservice_journal_waiting_bytes 64.0",
        "mdservice_journal_bytes 4096.0",
        "mdservice_journal_up 1.0",
        "mdservice_journal_failures_total 0.0",
        'mdservice_journal_problem{problem="full"} 0.0',
    ):
        assert line in text


async def test_metrics_show_the_relay(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    for line in (
        "mdservice_relay_clients 1.0",
        "mdservice_relay_messages_total 900.0",
        "mdservice_relay_conflated_total 4.0",
        "mdservice_relay_cut_total 2.0",
        'mdservice_relay_class_clients{class="local"} 1.0',
        'mdservice_relay_class_clients{class="remote"} 0.0',
        'mdservice_relay_class_messages_total{class="remote"} 100.0',
        'mdservice_relay_class_cut_total{class="local"} 1.0',
    ):
        assert line in text


async def test_metrics_show_each_feed(client: httpx.AsyncClient, service: FakeService) -> None:
    service.publish("AAPL", 1.0, 2.0)
    text = (await client.get("/metrics")).text
    for line in (
        'mdservice_connection_up{feed="stocks"} 1.0',
        'mdservice_connection_left_out{feed="stocks"} 1.0',
        'mdservice_connection_reconnects_total{feed="stocks"} 1.0',
        'mdservice_connection_records_received_total{channel="quotes",feed="stocks"} 6.0',
        'mdservice_connection_silent_symbols_total{feed="stocks"} 4.0',
        'mdservice_connection_decode_errors_total{feed="stocks"} 3.0',
        'mdservice_connection_gaps_total{feed="stocks"} 2.0',
        'mdservice_connection_gaps_repaired_total{feed="stocks"} 1.0',
        'mdservice_connection_clock_behind_seconds{feed="stocks"} 0.0',
    ):
        assert line in text
