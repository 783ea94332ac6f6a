"""Every relative link in the documentation leads to a file of the project, and to a heading."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
ANCHORED = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub and the site give to the headings."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        name = re.sub(r"[^\w\s-]", "", heading.strip().lower()).replace(" ", "-")
        found.add(next(n for n in (name, *(f"{name}-{i}" for i in range(1, 99))) if n not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_are_headings(page):
    missing = []
    for link, anchor in ANCHORED.findall(page.read_text()):
        target = page.parent / link if link else page
        if "://" in link or target.suffix != ".md":
            continue
        if anchor not in anchors_of(target.read_text()):
            missing.append(f"{link}#{anchor}")
    assert missing == []


def test_anchors_are_made_as_they_are_on_github():
    text = (
        "# The price object\n## `GET /status`\n```\n# no heading\n```\n## P&L, live\n## P&L, live\n"
    )
    assert anchors_of(text) == {"the-price-object", "get-status", "pl-live", "pl-live-1"}


def test_there_are_pages_with_links():
    assert any(LINK.search(page.read_text()) for page in PAGES)


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "ADRs"
    index = (folder / "README.md").read_text()
    decisions = [page.name for page in folder.glob("[0-9]*.md")]
    assert decisions
    assert [name for name in decisions if name not in index] == []
