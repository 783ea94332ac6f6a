"""The tree of errors is the one that its docstring draws."""

from __future__ import annotations

import inspect
import re

import pytest

from mdservice import errors
from mdservice.errors import FeedRefused, MDServiceError, SubscriptionRefused

DRAWN = re.compile(r"^    ((?:│   |    )*(?:├── |└── )?)(\w+)", re.MULTILINE)
WIDTH = 4


def drawn_parents() -> dict[str, str]:
    """Each error of the drawing with the one above it."""
    drawing = inspect.getdoc(errors) or ""
    parents: dict[str, str] = {}
    above: list[str] = []
    for prefix, name in DRAWN.findall(drawing):
        depth = len(prefix) // WIDTH
        above[depth:] = [name]
        parents[name] = above[depth - 1] if depth else "Exception"
    return parents


def test_the_drawing_is_the_tree() -> None:
    real = {
        name: cls.__base__.__name__
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, Exception)
    }
    assert drawn_parents() == real
    assert sorted(errors.__all__) == sorted(real)


@pytest.mark.parametrize("name", errors.__all__)
def test_one_root_catches_all(name: str) -> None:
    assert issubclass(getattr(errors, name), MDServiceError)


@pytest.mark.parametrize(("http", "given"), [(False, {}), (True, {"http": True})])
def test_a_refusal_of_the_feed_carries_its_code(http: bool, given: dict[str, bool]) -> None:
    error = FeedRefused("no; do this", code=402, **given)
    assert (str(error), error.code, error.http) == ("no; do this", 402, http)


def test_a_refused_subscription_carries_its_symbols() -> None:
    error = SubscriptionRefused("full; unsubscribe others", code=405, symbols=["AAPL", "MSFT"])
    assert (str(error), error.code, error.symbols) == (
        "full; unsubscribe others",
        405,
        ("AAPL", "MSFT"),
    )
