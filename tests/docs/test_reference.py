"""The reference has all that there is: settings, commands, calls, messages, metrics, codes."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import click
import pytest

import mdservice
from docs.generate.kinds import EXAMPLES, repair_in_words
from docs.generate.names import GROUPS, public
from docs.generate.pages import DRAWN, PAGES, PARTS, filled, parts_of
from mdservice.cli import cli
from mdservice.cli import options as failures
from mdservice.gateway.make import make_tracker
from mdservice.gateway.serve import gateway_app
from mdservice.http_api.server import create_app
from mdservice.model.events import FeedState
from mdservice.model.feeds import FEEDS
from mdservice.model.kinds import KINDS, QUOTES
from mdservice.settings import SETTINGS, Settings
from mdservice.testing.fake_service import FakeService
from tests.integration.test_repair_of_each_kind import named as case_of

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PACKAGE = Path(mdservice.__file__).parent
AGAIN = "the code has changed: run `just docs-reference`"


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text()


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_a_page_says_what_the_code_says(file: Path) -> None:
    assert file.read_text() == filled(file.read_text()), AGAIN


def test_every_part_stands_on_a_page() -> None:
    placed = [name for file in PAGES for name in parts_of(file.read_text())]
    assert sorted(placed) == sorted(PARTS)


# That the parts have all of it does not follow from their being up to date.


def test_every_setting_is_there() -> None:
    text = page("settings")
    assert [
        name
        for info in SETTINGS
        for name in (info.name, *info.environment)
        if f"`{name}`" not in text
    ] == []
    headings = re.findall(r"^### `(\w+)`", text, re.MULTILINE)
    assert headings == [info.name for info in SETTINGS]


def test_every_command_and_option_is_there() -> None:
    text = page("cli")
    for name, command in cli.commands.items():
        part = text.partition(f"### `mdservice {name}`\n")[2].partition("\n### ")[0]
        own = [p for p in command.params if isinstance(p, click.Option)]
        flags = [o.opts[0] for o in own if o.name not in {info.name for info in SETTINGS}]
        assert [flag for flag in flags if f"`{flag}" not in part] == [], name


def calls_of(application) -> set[str]:
    return {
        f"{method.upper()} {path}"
        for path, methods in application.openapi()["paths"].items()
        for method in methods
    }


def gateway():
    return gateway_app(make_tracker(list, Settings(), redis_url="redis://localhost:1"))


def test_every_call_is_there_and_no_other() -> None:
    for name, application in (("http", create_app(FakeService())), ("gateway", gateway())):
        headings = re.findall(r"^### `((?:[A-Z]+) /[^`]+)`", page(name), re.MULTILINE)
        assert sorted(headings) == sorted(calls_of(application))


def test_every_field_of_a_body_has_a_meaning() -> None:
    for application in (create_app(FakeService()), gateway()):
        schemas = application.openapi()["components"]["schemas"]
        assert [
            f"{name}.{field}"
            for name, schema in schemas.items()
            for field, told in schema["properties"].items()
            if "description" not in told
        ] == []


def test_every_metric_is_there() -> None:
    text = page("metrics")
    names = [
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in create_app(FakeService()).state.metrics.collect()
        if metric.name.startswith("mdservice_")
    ]
    assert len(names) > 30
    assert [name for name in names if f"\n| `{name}` |" not in text] == []


def test_every_metric_that_is_named_exists() -> None:
    rows = set(re.findall(r"^\| `(mdservice_\w+)` \|", page("metrics"), re.MULTILINE))
    named = set(re.findall(r"\b(mdservice_\w+)", page("metrics")))
    assert {name.removesuffix("_bucket") for name in named} <= rows


# Exit codes


def _constants(tree: ast.Module) -> dict[str, int]:
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and type(node.value.value) is int
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def exit_codes(source: str) -> set[int]:
    """What a module of the program may end with, as far as it says so by number or name."""
    tree = ast.parse(source)
    known = _constants(ast.parse(Path(failures.__file__).read_text())) | _constants(tree)
    codes = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "ctx.exit",
            "sys.exit",
            "os._exit",
            "SystemExit",
        }:
            for word in (w for argument in node.args for w in ast.walk(argument)):
                if isinstance(word, ast.Constant) and type(word.value) is int:
                    codes.add(word.value)
                if isinstance(word, ast.Name) and word.id in known:
                    codes.add(known[word.id])
    return codes


def used_codes() -> set[int]:
    files = [*(PACKAGE / "cli").glob("*.py"), PACKAGE / "app" / "run.py"]
    constants = _constants(ast.parse(Path(failures.__file__).read_text()))
    return set(constants.values()).union(*(exit_codes(file.read_text()) for file in files))


def test_every_exit_code_is_there_and_no_other() -> None:
    table = page("cli").partition("## Exit codes")[2]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == used_codes()


def test_exit_codes_are_found() -> None:
    assert exit_codes("_OTHER = 3\nctx.exit(_OTHER if x else CONFIGURATION)") == {3, 78}
    assert exit_codes("import os\nos._exit(9)") == {9}


# Redis


def test_every_state_of_the_feed_is_there_with_a_message() -> None:
    text = page("redis")
    states = get_args(FeedState)
    table = text.partition("## Changes")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(states)
    assert [state for state in states if f'"state":"{state}"' not in text] == []


def test_every_field_of_a_message_is_explained() -> None:
    text = page("redis")
    fields = set(re.findall(r'"(\w+)":', text))
    assert len(fields) > 20
    assert fields - set(re.findall(r"`(\w+)`", text)) == set()


# Kinds of records


def test_every_kind_is_there_with_examples() -> None:
    text = page("kinds")
    headings = re.findall(r"^### `(\w+)`$", text, re.MULTILINE)
    assert headings == [kind.channel for kind in KINDS]
    for kind in KINDS:
        for example in EXAMPLES[kind]:
            assert kind.encode(kind.decode(kind.encode(example))) == kind.encode(example)


def test_every_field_of_a_record_is_explained() -> None:
    text = page("kinds")
    for kind in KINDS:
        part = text.split(f"### `{kind.channel}`\n")[1].partition("\n### ")[0]
        fields = set(re.findall(r'"(\w+)":', part)) - {"symbol", "timestamp", "seq"}
        explained = page("redis") if kind is QUOTES else part
        assert fields - set(re.findall(r"`(\w+)`", explained)) == set(), kind


def test_what_becomes_of_missed_records_stands_beside_its_tests() -> None:
    text = (REFERENCE.parent / "reliability.md").read_text()
    table = text.partition("## Each kind of record")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \| `(\S+)` \|$", table, re.MULTILINE)
    assert rows == [
        (kind.channel, feed.name, repair_in_words(kind, feed), case_of(kind, feed))
        for kind in KINDS
        for feed in FEEDS
        if kind in feed.kinds
    ]


# Python


def test_every_public_name_is_there() -> None:
    text = page("python")
    named = [name for group in GROUPS for name, _ in public(group)]
    assert len(named) > 80
    assert [name for name in named if f"\n| `{name}` |" not in text] == []
    assert [name for name in named if f":: {name}\n" not in text] == []


def test_the_drawn_picture_is_of_these_figures() -> None:
    from docs.generate.costs import costs

    assert DRAWN.read_text() == costs(), AGAIN
