"""The pictures can be read anywhere, and show what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from docs.generate.costs import FIGURES
from docs.generate.terminal import picture_of
from mdservice.app import topology
from mdservice.feed import connection, retries
from mdservice.model.events import FeedState
from tests.docs.test_guide import CAMEL_CASE, unknown_classes

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = sorted((DOCS / "pictures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
EMBEDDED = re.compile(r"!\[([^\]]+)\]\(([^)]+\.svg)\)")


def words_of(name: str) -> list[str]:
    root = ET.fromstring((DOCS / "pictures" / f"{name}.svg").read_text())
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_needs_nothing_from_elsewhere(picture: Path) -> None:
    text = picture.read_text()
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert "viewBox" in root.attrib
    assert re.findall(r"@import|@font-face|<script|<image|href=|url\((?!#)", text) == []


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_has_a_background_of_its_own(picture: Path) -> None:
    root = ET.fromstring(picture.read_text())
    first = next(element for element in root.iter(f"{SVG}rect") if element.get("fill"))
    assert first.get("fill", "none") != "none"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert float(first.attrib["width"]) > width - 4
    assert float(first.attrib["height"]) > height - 4


def test_every_picture_is_shown_with_a_description() -> None:
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    shown = {
        (page.parent / path).resolve()
        for page in pages
        for _, path in EMBEDDED.findall(page.read_text())
    }
    assert [picture.name for picture in PICTURES if picture.resolve() not in shown] == []


def test_classes_that_a_picture_names_exist() -> None:
    names = CAMEL_CASE.findall("\n".join(w for p in PICTURES for w in words_of(p.stem)))
    assert ("FeedConnection", "") in names
    keys = {"PgUp", "PgDn"}
    assert [name for name in unknown_classes(names) if name not in keys] == []


def phases() -> set[str]:
    """What the connection calls its states."""
    found = set()
    for module in (connection, retries):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "self._phase":
                value = node.value
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Retry":
                value = node.args[0]
            else:
                continue
            if isinstance(value, ast.Constant):
                found.add(value.value)
            elif isinstance(value, ast.Name):
                found.add(getattr(module, value.id))
    return found


def test_the_connection_shows_every_state_and_every_message() -> None:
    assert len(phases()) == 8
    words = words_of("connection")
    assert phases() - set(words) == set()
    assert set(FeedState.__args__) - set(words) == set()


def test_the_phases_are_those_that_the_api_describes() -> None:
    from mdservice.http_api.schemas import StatusAnswer

    feed = StatusAnswer.model_json_schema()["$defs"]["_Feed"]["properties"]["phase"]
    assert set(re.findall(r"`(\w+)`", feed["description"])) == phases()


def test_the_channels_have_the_sizes_of_the_plan() -> None:
    plans = {
        name.lower(): plan.size
        for name, plan in vars(topology).items()
        if isinstance(plan, topology.ChannelPlan)
    }
    assert len(plans) == 5
    words = set(words_of("data-flow"))
    assert {f"{name} ({size})" for name, size in plans.items()} - words == set()


def test_what_a_quote_costs_stands_in_the_report() -> None:
    """Measured anew, the figures of docs/generate/costs.py change too."""
    report = (DOCS / "performance.md").read_text()
    found = set(re.findall(r"[\d.,]*\d", report))
    assert [figure for figure in FIGURES if figure.removesuffix(" ms") not in found] == []


def test_a_screen_becomes_a_picture() -> None:
    screen = "\x1b[1m\x1b[32mrunning\x1b[0m 12 events/s\n\n  a < b"
    root = ET.fromstring(picture_of(screen, 40, "mdservice watch"))
    words = " ".join("".join(text.itertext()) for text in root.iter(f"{SVG}text"))
    assert " ".join(words.split()) == "mdservice watch running 12 events/s a < b"
