"""Scrapes as Prometheus would take them, and its judgement of the alert rules on them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

__all__ = [
    "ALERTS",
    "EXPRESSIONS",
    "LIMIT_S",
    "RECORDS",
    "RULES",
    "SCRAPE_S",
    "Firing",
    "Scrapes",
    "judge",
    "needs_promtool",
]

RULES: Final = Path(__file__).parents[2] / "docs" / "operations" / "prometheus" / "alerts.yml"
_RULES: Final[Sequence[dict[str, Any]]] = [
    rule for group in msgspec.yaml.decode(RULES.read_bytes())["groups"] for rule in group["rules"]
]
ALERTS: Final = {rule["alert"]: rule for rule in _RULES if "alert" in rule}
"""The alerting rules by the name of their alert."""
RECORDS: Final = {rule["record"]: rule["expr"] for rule in _RULES if "record" in rule}
"""The expressions of the recorded series by their name."""
EXPRESSIONS: Final = [rule["expr"] for rule in _RULES]
"""Those of all rules."""
SCRAPE_S: Final = 15
LIMIT_S: Final = 600.0
"""For promtool, on a busy machine."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool of Debian's package `prometheus`"
)

_NAMED: Final = frozenset(re.findall(r"[a-z_]+\w*", " ".join(EXPRESSIONS)))
Firing = Mapping[str, Sequence[Mapping[str, str]]]
"""The alerts that fire, each with the labels of its instances, without those of the target."""


class Scrapes:
    """The series of all targets, one value for each :data:`SCRAPE_S`.

    It keeps the series that a rule names. The value of a series is the text of the scrape.
    """

    def __init__(self) -> None:
        self.count = 0
        self._series: dict[str, list[str]] = {}

    def add(self, answers: Mapping[str, str | None]) -> None:
        """Add one scrape.

        Args:
            answers: By the name of the job: the text of ``/metrics``, or None without an answer.
        """
        for job, text in answers.items():
            target = f'job="{job}",instance="desk-1"'
            self._note(f"up{{{target}}}", "0" if text is None else "1")
            for line in (text or "").splitlines():
                if line[0] == "#":
                    continue
                series, _, value = line.rpartition(" ")
                name, _, labels = series.partition("{")
                if name in _NAMED:
                    labels = labels.removesuffix("}")
                    self._note(f"{name}{{{f'{labels},' if labels else ''}{target}}}", value)
        self.count += 1

    def _note(self, series: str, value: str) -> None:
        values = self._series.setdefault(series, [])
        self._fill(values)
        values.append(value)

    def _fill(self, values: list[str]) -> None:
        """Where the last scrapes had no value, as Prometheus does: the series is stale."""
        if missing := self.count - len(values):
            values.append("stale" if values else "_")
            values.extend("_" * (missing - 1))

    def again(self, parts: Iterable[range]) -> Scrapes:
        """These scrapes, part after part."""
        new = Scrapes()
        for values in self._series.values():
            self._fill(values)
        for part in parts:
            for series, values in self._series.items():
                new._series.setdefault(series, []).extend(values[part.start : part.stop])
            new.count += len(part)
        return new

    def as_input(self) -> list[dict[str, str]]:
        """The ``input_series`` of promtool."""
        for values in self._series.values():
            self._fill(values)
        return [
            {"series": series, "values": " ".join(_repeated(values))}
            for series, values in self._series.items()
        ]


def _repeated(values: Sequence[str]) -> Iterable[str]:
    """The values in promtool's notation, which writes equal ones only once."""
    start = 0
    for place in range(1, len(values) + 1):
        if place == len(values) or values[place] != values[start]:
            value, count = values[start], place - start
            if count == 1 or value == "stale":
                yield from [value] * count
            else:
                yield f"_x{count}" if value == "_" else f"{value}+0x{count - 1}"
            start = place


def judge(
    scrapes: Scrapes, cases: Iterable[tuple[int, Firing]], folder: Path, every_s: int = SCRAPE_S
) -> str:
    """Let promtool evaluate the rules on the scrapes.

    Args:
        scrapes: What it evaluates.
        cases: At each of these times, in seconds since the first scrape, exactly these alerts
            fire. An alert that none of the cases names may not fire at any time.
        folder: Where the file of the test is written.
        every_s: How often the rules are evaluated, seconds.

    Returns:
        What promtool finds wrong; nothing where it agrees.
    """
    cases = list(cases)
    ever = sorted({name for _, firing in cases for name, labels in firing.items() if labels})
    end_s = (scrapes.count - 1) * SCRAPE_S
    test = {
        "interval": f"{SCRAPE_S}s",
        "input_series": scrapes.as_input(),
        "alert_rule_test": [
            {
                "eval_time": f"{at_s}s",
                "alertname": name,
                "exp_alerts": [_expected(rule, labels) for labels in firing.get(name, ())],
            }
            for at_s, firing in cases
            for name, rule in ALERTS.items()
        ],
        "promql_expr_test": [
            {
                "eval_time": f"{end_s}s",
                "expr": "group by (alertname) "
                f'(count_over_time(ALERTS{{alertstate="firing"}}[{end_s + SCRAPE_S}s]))',
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in ever],
            }
        ],
    }
    file = folder / "alerts_test.yml"
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{every_s}s",
        "tests": [test],
    }
    file.write_bytes(msgspec.json.encode(content))  # which is YAML too
    command = ["promtool", "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _expected(rule: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    of_alert = {"job": "mdservice", "instance": "desk-1", **labels}
    return {
        "exp_labels": {**rule["labels"], **of_alert},
        "exp_annotations": {
            name: re.sub(r"{{ \$labels\.(\w+) }}", lambda found: of_alert[found[1]], text)
            for name, text in rule["annotations"].items()
        },
    }
