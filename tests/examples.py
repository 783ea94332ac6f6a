"""How many examples a property is tested with: all, or a quarter in `just test`."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100
"""The number of examples that Hypothesis takes if nothing else is said."""


def examples(count: int, **more: int) -> settings:
    """Test with so many examples, or with the share of them that the profile has."""
    share = settings().max_examples / _USUAL
    return settings(max_examples=max(2, round(count * share)), **more)
