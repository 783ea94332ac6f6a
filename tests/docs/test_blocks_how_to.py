"""The guides do what they say."""

from __future__ import annotations

import pytest

from tests.docs.fences import ROOT

GUIDES = sorted((ROOT / "docs" / "how-to").glob("*.md"))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_does_what_it_says(page, follow):
    follow(page)
