"""The reference of the metrics, from a scrape."""

from __future__ import annotations

from fastapi import FastAPI

from docs.generate.text import code, table
from mdservice.gateway.make import make_tracker
from mdservice.gateway.serve import gateway_app
from mdservice.http_api.server import create_app
from mdservice.settings import Settings
from mdservice.testing.fake_service import FakeService

__all__ = ["gateway_metrics", "metrics"]


def metrics() -> str:
    """Each metric as Prometheus names it: of a counter that is with ``_total``."""
    return table(("name", "type", "labels", "meaning"), _rows(create_app(FakeService())))


def gateway_metrics() -> str:
    """Each metric of a gateway."""
    limits = ["total pnl < -1"]
    tracker = make_tracker(list, Settings(), redis_url="redis://localhost:1", limits=limits)
    return table(("name", "type", "labels", "meaning"), _rows(gateway_app(tracker)))


def _rows(app: FastAPI) -> list[tuple[str, str, str, str]]:
    rows = []
    for metric in app.state.metrics.collect():
        if not metric.name.startswith("mdservice_"):
            continue  # of the process, by the client library, and only on Linux
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = dict.fromkeys(label for sample in metric.samples for label in sample.labels)
        labels.pop("le", None)
        rows.append((code(name), metric.type, ", ".join(map(code, labels)), metric.documentation))
    return rows
