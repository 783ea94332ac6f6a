"""What a newcomer reads first does what it says."""

from __future__ import annotations

import pytest

from tests.docs.fences import ROOT


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_a_page_does_what_it_says(name, follow):
    follow(ROOT / name)
