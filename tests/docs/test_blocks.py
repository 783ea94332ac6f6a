"""Every fenced block of the documentation is run, compared, or no code; nothing is left out."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.docs.commands import Command, commands_of, missing, same_structure
from tests.docs.fences import PAGES, ROOT, Block, blocks_of, blocks_of_page
from tests.docs.reader import GENERATED, Reader, example_of, open_reader
from tests.docs.shell import DoesNotWork

HOW_TO = ROOT / "docs" / "how-to"
START = {ROOT / "README.md", ROOT / "docs" / "tutorial.md"}
OTHERS = [page for page in PAGES if page.parent != HOW_TO and page not in START]
"""Followed here; the rest in test_blocks_start.py and test_blocks_how_to.py, since the tests of
one file run one after the other."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page):
    assert [str(block) for block in blocks_of_page(page) if not block.is_known] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_that_is_called_text_is_a_command(page):
    texts = [
        block
        for block in blocks_of_page(page)
        if block.language == "text" and not block.page.startswith(GENERATED)  # usage, from --help
    ]
    commands = ("$ ", ".venv/bin/", "mdservice ", "just ", "curl ", "import ", "export ")
    assert [
        f"{block}: {line}"
        for block in texts
        for line in block.text.splitlines()
        if line.startswith(commands)
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_program_that_describes_itself_is_that_of_the_examples(page):
    programs = [block for block in blocks_of_page(page) if block.text.startswith('"""')]
    assert [str(block) for block in programs if example_of(block) is None] == []


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page, follow):
    if any(block.language != "text" for block in blocks_of_page(page)):
        follow(page)


# The reader's own eyes


@pytest.fixture
def reader(shared_valkey) -> Iterator[Reader]:
    account = ("ws://127.0.0.1:9", "http://127.0.0.1:9")
    with open_reader(type(shared_valkey)(), account) as reader:
        yield reader


def test_blocks_are_found_with_their_line_and_language():
    text = (
        "a\n\n```sh run\nls\n```\n\n- b\n\n  ```python\n  if x:\n      y\n  ```\n\n```\n-->\n```\n"
    )
    assert blocks_of(text) == [
        Block("page.md", 3, "sh", "ls\n"),
        Block("page.md", 9, "python", "if x:\n    y\n"),
        Block("page.md", 14, "", "-->\n"),
    ]


def test_a_fence_that_is_not_closed_is_reported():
    with pytest.raises(ValueError, match="not closed"):
        blocks_of("```sh\nls\n")


@pytest.mark.parametrize(
    ("language", "known"),
    [("sh", True), ("text", True), ("{toctree}", True), ("", False), ("rust", False),
     ("{code-block}", False), ("{literalinclude}", False)],
)  # fmt: skip
def test_what_is_neither_run_nor_named_as_no_code_is_unknown(language, known):
    assert Block("page.md", 1, language, "").is_known is known


def test_commands_of_a_block():
    text = "# first\nls  # here\n\nrun --a \\\n    --b\ncat >f <<'EOF'\nx # y\n\nEOF\nls\n"
    assert [command.text for command in commands_of("sh", text)] == [
        "ls  # here",
        "run --a \\\n    --b",
        "cat >f <<'EOF'\nx # y\n\nEOF",
        "ls",
    ]


def test_commands_of_a_session_with_what_they_show():
    text = "$ run \\\n>   --a\nready\n…\n$ ls\n"
    assert commands_of("console", text) == [
        Command("run \\\n  --a", ("ready", "…")),
        Command("ls"),
    ]
    with pytest.raises(ValueError, match="no command"):
        commands_of("console", "ready\n$ ls\n")


def test_what_is_shown_is_compared_but_for_numbers_and_sockets():
    output = (
        "AAPL    187.135  -1,200.50  live\nat unix:///tmp/x/mdservice.0a9f12.valkey.sock (own)\n"
    )
    shown = (
        *("AAPL 190.1 +3.5 live", "…", "AAPL … live"),
        "at unix:///run/user/1000/mdservice.3fa2b1.valkey.sock …",
    )
    assert missing(shown, output) == []
    assert missing(("AAPL 190.1 +3.5 stale",), output) == ["AAPL 190.1 +3.5 stale"]
    assert missing(("MSFT …",), output) == ["MSFT …"]


@pytest.mark.parametrize(
    ("told", "same"),
    [({"a": 2.5, "b": [{"c": "y", "d": 1}, {"c": None}]}, True),
     ({"a": 2.5, "b": [{"c": "y", "d": None}]}, True), ({"a": None, "b": [{"c": "y", "d": 1}]}, False),
     ({"a": 1}, False), ({"a": 1, "b": []}, False), ({"a": 1, "b": [], "c": 1}, False), ({"a": "1", "b": []}, False),
     ({"a": 1, "b": [{"d": "y"}]}, False), ({"a": 1, "b": [{"c": 2, "d": 1}]}, False), ({"a": 1, "b": None}, False)],
)  # fmt: skip
def test_answers_are_compared_by_structure(told, same):
    assert same_structure({"a": 1, "b": [{"c": "x", "d": None}]}, told) is same


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```sh\nexport A=b\ncd docs\ntest $A = b && test -d ADRs\n```", None),
        ("```sh\ntrue\nls nowhere\n```", "page.md:1: 'ls nowhere' ended with"),
        ("```sh\n.venv/bin/mdservice simulate --port none\n```", "ended with 2"),
        ("```console\n$ echo 1 2\n3 4\n```", None),
        ("```console\n$ echo one\ntwo\n```", "does not show"),
        ('```sh\necho \'{"a": 1}\'\n```\n```json\n{"a": 2}\n```', None),
        ("```json\n{}\n```", "no command stands before"),
        ("```python\nprint(1)\n```", None),
        ("```python\n1 / 0\n```", "ZeroDivisionError"),
        ("```python\nwhile True:\n    print(1, flush=True)\n```", None),
        ("```python\nimport json\nimport sys\n```", "shows read_prices.py and does not run it"),
        ('```toml\n[mdservice]\nfeed = "iex"\n```', None),
        ('```toml\n[mdservice]\nfed = "iex"\n```', "fed"),
    ],
)
def test_the_reader_reports_what_does_not_work(text, why, reader):
    if why is None:
        reader.follow(blocks_of(text))
        return
    with pytest.raises(DoesNotWork, match=re.escape(why)):
        reader.follow(blocks_of(text))


def test_an_answer_in_another_form_is_reported(reader, monkeypatch):
    monkeypatch.setattr("tests.docs.reader.ANSWER_LIMIT_S", 0.0)
    with pytest.raises(DoesNotWork, match="another form"):
        reader.follow(blocks_of('```sh\necho \'{"a": 1}\'\n```\n```json\n{"b": 2}\n```'))


def test_nothing_that_was_started_is_left(shared_valkey):
    account = ("ws://127.0.0.1:9", "http://127.0.0.1:9")
    with open_reader(type(shared_valkey)(), account) as reader:
        reader.follow(blocks_of("```sh\n.venv/bin/mdservice simulate --port 0\n```"))
        (simulator,) = reader.shell.started
        assert simulator.process.poll() is None
    assert simulator.process.poll() is not None
    assert not reader.shell.folder.exists()


def test_a_part_of_an_example_is_known_and_one_that_has_drifted_is_not():
    part = "import json\nimport sys\n\nimport redis\n"
    shown = example_of(Block("page.md", 1, "python", part))
    assert shown is not None
    assert shown.name == "read_prices.py"
    assert example_of(Block("page.md", 1, "python", part.replace("sys", "os"))) is None
