"""The Grafana board, as its file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

__all__ = ["BOARD", "PANELS", "TARGETS", "expression"]

_FILE: Final = Path(__file__).parents[2] / "docs" / "operations" / "grafana" / "mdservice.json"
BOARD: Final[dict[str, Any]] = json.loads(_FILE.read_text())
PANELS: Final = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS: Final = [(panel, target) for panel in PANELS for target in panel["targets"]]
"""Each query, with its panel."""


def expression(target: dict[str, Any], interval: str = "1m") -> str:
    """The expression as Grafana sends it."""
    text: str = target["expr"]
    return text.replace("$__rate_interval", interval)
