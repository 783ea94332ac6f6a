"""Every relative link in the documentation leads to a file of the project."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_there_are_pages_with_links():
    assert any(LINK.search(page.read_text()) for page in PAGES)


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "ADRs"
    index = (folder / "README.md").read_text()
    decisions = [page.name for page in folder.glob("[0-9]*.md")]
    assert decisions
    assert [name for name in decisions if name not in index] == []
