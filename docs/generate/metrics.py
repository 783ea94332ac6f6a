"""The reference of the metrics, from a scrape."""

from __future__ import annotations

from docs.generate.text import code, table
from mdservice.http_api.server import create_app
from mdservice.testing.fake_service import FakeService

__all__ = ["metrics"]


def metrics() -> str:
    """Each metric as Prometheus names it: of a counter that is with ``_total``."""
    return table(("name", "type", "labels", "meaning"), _rows())


def _rows() -> list[tuple[str, str, str, str]]:
    rows = []
    for metric in create_app(FakeService()).state.metrics.collect():
        if not metric.name.startswith("mdservice_"):
            continue  # of the process, by the client library, and only on Linux
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = dict.fromkeys(label for sample in metric.samples for label in sample.labels)
        labels.pop("le", None)
        rows.append((code(name), metric.type, ", ".join(map(code, labels)), metric.documentation))
    return rows
