"""The guides name only what exists."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

import mdservice
from mdservice.http_api.server import create_app
from mdservice.model.kinds import KINDS
from mdservice.redis_io.names import BATCH_CHANNEL, INSTANCES_CHANNEL
from mdservice.settings import SETTINGS
from mdservice.testing.fake_service import FakeService

ROOT = Path(__file__).parents[2]
PACKAGE = Path(mdservice.__file__).parent
GUIDE = ROOT / "docs" / "IMPLEMENTATION_GUIDES" / "p1.2t1-realtime-market-data.md"
DECISION = ROOT / "docs" / "ADRs" / "0010-realtime-market-data.md"
PAGES = [
    *sorted((ROOT / "docs" / "IMPLEMENTATION_GUIDES").glob("*.md")),
    *sorted((ROOT / "docs" / "CONCEPTS").glob("*.md")),
    DECISION,
    ROOT / "docs" / "architecture.md",
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
]

RECIPES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]

PATH = re.compile(r"`((?:mdservice|tests|docs)/[\w/.-]*)`")
TEST = re.compile(r"`(test_\w+)`")
TARGET = re.compile(r"(?<=\])\([^)\s]+\)")
"""Where a link leads: see test_links.py."""
FROM_CODE = re.compile(r"<!-- from the code.*?<!-- end -->", re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?<![\w./-])[\w./-]+\.(?:py|toml|md)\b")
FOLDER = re.compile(r"[\w/]+/|(?:tests|docs)/[\w/]+")
DOTTED = re.compile(r"mdservice(?:\.\w+)+")
CAMEL_CASE = re.compile(r"(?<![\w./-])([A-Z][a-z]\w*[A-Z]\w*)((?:\.[A-Za-z_]\w*)*)")
CAPITAL = re.compile(r"([A-Z][a-z]\w*)((?:\.[A-Za-z_]\w*)*)")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")

OTHERS = frozenset({"Accept", "FastAPI", "RestartPreventExitStatus", "StockDataStream"})
"""Names of other libraries and programs that the pages mention."""


@cache
def definitions() -> dict[str, set[str]]:
    """What the package defines: each class with what it has, each function and constant."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(_members(node))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.setdefault(node.name, set())
        for node in tree.body:
            found.update((name, set()) for name in _assigned(node) if name not in found)
    return found


def _assigned(node: ast.AST) -> list[str]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [
        target.id if isinstance(target, ast.Name) else target.attr
        for target in targets
        if isinstance(target, ast.Name)
        or (isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name))
    ]


def _members(node: ast.ClassDef) -> set[str]:
    names = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(inner.name)
        else:
            names.update(_assigned(inner))
    return names


@cache
def source_words() -> frozenset[str]:
    """Every word of the package's code and texts."""
    texts = [file.read_text() for file in PACKAGE.rglob("*.py")]
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


def unknown_files(text: str) -> list[str]:
    return [
        path
        for path in FILE.findall(text)
        if not any((folder / path).exists() for folder in (ROOT, PACKAGE))
        and path != "mdservice.toml"
        and not (ROOT / "docs" / "ADRs" / path).exists()
    ]


def unknown_folders(spans: list[str]) -> list[str]:
    folders = [span for span in spans if FOLDER.fullmatch(span)]
    return [f for f in folders if not any((root / f).is_dir() for root in (ROOT, PACKAGE))]


def unknown_dotted(text: str) -> list[str]:
    missing = []
    for dotted in DOTTED.findall(text):
        if dotted in {"mdservice.toml", "mdservice.sock", BATCH_CHANNEL, INSTANCES_CHANNEL}:
            continue
        if dotted in {kind.marker for kind in KINDS}:
            continue
        parts = dotted.split(".")
        for end in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:end]))
            except ModuleNotFoundError:
                continue
            for name in parts[end:]:
                found = getattr(found, name, None)
            if found is None:
                missing.append(dotted)
            break
    return missing


def unknown_classes(names: list[tuple[str, str]]) -> list[str]:
    """Of names and what is said of them (``.method``), those that the package does not define."""
    missing = []
    for name, attributes in names:
        if name in OTHERS or hasattr(builtins, name):
            continue
        members = definitions().get(name)
        if members is None or any(a not in members for a in attributes.split(".")[1:2]):
            missing.append(name + attributes)
    return missing


def capitals(spans: list[str]) -> list[tuple[str, str]]:
    return [found.groups() for span in spans if (found := CAPITAL.fullmatch(span))]


def unknown_words(spans: list[str]) -> list[str]:
    """Plain names in backticks that stand nowhere in the package."""
    composed = metric_names() | {name for info in SETTINGS for name in info.environment}
    known = source_words() | OTHERS
    return [
        span
        for span in spans
        if NAME.fullmatch(span)
        and not FILE.fullmatch(span)
        and not (PACKAGE / span).is_file()
        and span not in composed
        and not set(re.findall(r"\w+", span)) <= known
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = TARGET.sub("", FROM_CODE.sub("", page.read_text()))
    spans = SPAN.findall(FENCED.sub("", text))
    assert unknown_files(text) == []
    assert unknown_folders(spans) == []
    assert unknown_dotted("\n".join(spans)) == []
    in_pictures = CAMEL_CASE.findall("\n".join(FENCED.findall(text)))
    in_spans = CAMEL_CASE.findall("\n".join(spans))
    assert unknown_classes([*in_pictures, *in_spans, *capitals(spans)]) == []
    assert unknown_words(spans) == []


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.name)
def test_paths_and_tests_that_a_recipe_names_exist(page: Path) -> None:
    text = FENCED.sub("", TARGET.sub("", page.read_text()))
    assert [path for path in PATH.findall(text) if not (ROOT / path.rstrip(".")).exists()] == []
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = TEST.findall(text)
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_names_that_do_not_exist_are_found() -> None:
    assert unknown_files("`feeds/nowhere.py` and mdservice/feed/gap_repair/repair.py") == [
        "feeds/nowhere.py"
    ]
    assert unknown_folders(["feed/", "tests/docs", "fields/"]) == ["fields/"]
    assert unknown_dotted("mdservice.feed.mender, mdservice.feed.gap_repair.repair.GapRepair") == [
        "mdservice.feed.mender"
    ]
    assert unknown_dotted("mdservice.feed.gap_repair.repair.Mender") == [
        "mdservice.feed.gap_repair.repair.Mender"
    ]
    names = CAMEL_CASE.findall("GapMender GapRepair GapRepair.fix GapRepair.repair")
    assert unknown_classes(names) == ["GapMender", "GapRepair.fix"]
    assert unknown_classes(capitals(["Session.subscribe", "Mender", "Session.fix"])) == [
        "Mender",
        "Session.fix",
    ]
    assert unknown_words(["no_such_counter", "quotes_received"]) == ["no_such_counter"]


def test_the_guide_is_a_guide() -> None:
    assert len(GUIDE.read_text().splitlines()) >= 500


@cache
def metric_names() -> frozenset[str]:
    """As Prometheus shows them: counters end in ``_total``."""
    metrics = create_app(FakeService()).state.metrics.collect()
    return frozenset(
        metric.name + ("_total" if metric.type == "counter" else "") for metric in metrics
    )
