"""How much is tried of a property, or of random runs: all, or a part in `just test`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings

_USUAL = 100
"""The number of examples that Hypothesis takes if nothing else is said."""


def examples(count: int, **more: int) -> settings:
    """Test with so many examples, or with the share of them that the profile has."""
    share = settings().max_examples / _USUAL
    return settings(max_examples=max(2, round(count * share)), **more)


def first(quick: int, values: Sequence[Any]) -> list[Any]:
    """Parameters of which `just test` tries only the first few."""
    marks = pytest.mark.thorough
    return [
        value if index < quick else pytest.param(value, marks=marks)
        for index, value in enumerate(values)
    ]
