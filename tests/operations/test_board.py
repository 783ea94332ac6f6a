"""The Grafana board: Prometheus reads each expression, and each metric is exported."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mdservice.gateway.make import make_tracker
from mdservice.gateway.serve import gateway_app
from mdservice.http_api.server import create_app
from mdservice.settings import Settings
from mdservice.testing.fake_service import FakeService
from tests.operations.board import BOARD, PANELS, TARGETS, expression
from tests.operations.promtool import needs_promtool

OF_PROMETHEUS = {"up", "ALERTS"}
OPERATORS = {"by", "without", "or", "and", "unless", "bool", "on", "ignoring", "inf", "nan"}
PARTS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def metrics_in(expr: str) -> set[str]:
    """The names in an expression that are neither labels, functions nor operators."""
    rest = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on)\s*\([^)]*\)', " ", expr)
    return set(re.findall(r"[a-zA-Z_:][\w:]*\b(?!\s*\()", rest)) - OPERATORS


def exported() -> set[str]:
    tracker = make_tracker(list, Settings(), redis_url="redis://localhost:1")
    families = [
        family
        for app in (create_app(FakeService()), gateway_app(tracker))
        for family in app.state.metrics.collect()
    ]
    return {family.name + part for family in families for part in PARTS[family.type]}


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ('sum by (le) (rate(a_bucket{job="x"}[5m])) or vector(0)', {"a_bucket"}),
        ("a / on (instance) (b > 0) unless c", {"a", "b", "c"}),
    ],
)
def test_names_are_found(expr: str, names: set[str]) -> None:
    assert metrics_in(expr) == names


def test_every_metric_of_the_board_is_exported() -> None:
    known = exported() | OF_PROMETHEUS
    assert [
        (panel["title"], name)
        for panel, target in TARGETS
        for name in sorted(metrics_in(target["expr"]) - known)
    ] == []


def test_panels_are_distinct_and_say_their_unit_and_source() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
    (variable,) = BOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )


def area(panel: Any) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    across, down = (
        range(place[start], place[start] + place[size]) for start, size in (("x", "w"), ("y", "h"))
    )
    return set(itertools.product(across, down))


def test_no_panel_is_over_another_or_beyond_the_edge() -> None:
    for panel in BOARD["panels"]:
        assert {x for x, _ in area(panel)} <= set(range(24)), panel["title"]
    for one, other in itertools.combinations(BOARD["panels"], 2):
        assert not area(one) & area(other), (one["title"], other["title"])


@needs_promtool
def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"board:{number}", "expr": expression(target)}
        for number, (_, target) in enumerate(TARGETS)
    ]
    file = tmp_path / "rules.json"  # which is YAML too
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    command = ["promtool", "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
