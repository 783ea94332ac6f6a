"""The reference of the public names, by what they are for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

import mdservice
from docs.generate.text import code, fence, table

__all__ = ["GROUPS", "errors", "names", "public"]

GROUPS: Final[Mapping[str, Sequence[str]]] = {
    "main": (
        "mdservice",
        "mdservice.feed.requests.SubscriptionResult",
        "mdservice.model.status",
    ),
    "gateway": ("mdservice.gateway",),
    "pnl": (
        "mdservice.pnl.engine",
        "mdservice.pnl.rows",
        "mdservice.pnl.encode",
        "mdservice.pnl.rules",
        "mdservice.pnl.alerts",
    ),
    "positions": (
        "mdservice.model.position",
        "mdservice.positions.sources",
        "mdservice.positions.trading_stream.TradingStream",
    ),
    "extending": (
        "mdservice.app.topology.FeedParts",
        "mdservice.clock",
        "mdservice.feed.driver",
        "mdservice.feed.subscriptions.Followed",
        "mdservice.feed.history",
        "mdservice.model.feeds.Feed",
        "mdservice.model.feeds.Topic",
        "mdservice.publish.store",
        "mdservice.publish.lease",
    ),
    "testing": ("mdservice.testing",),
    "simulator": ("mdservice.simulator",),
}
"""What others may use: all that a module exports, or one name."""

_ROLE: Final = re.compile(r":\w+:`~?(?:\w+\.)*(\w+)`")
"""``:class:`~mdservice.clock.Clock` ``, of which only the name is shown in a table."""

_ERRORS: Final = "mdservice.errors"


def public(group: str) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each export of a group; what ``mdservice`` exports stands there."""
    top = [getattr(mdservice, name) for name in mdservice.__all__]
    for place in GROUPS[group]:
        found = resolve_name(place)
        if not inspect.ismodule(found):
            yield place, found
            continue
        for name in found.__all__:
            value = getattr(found, name)
            if not name.startswith("__") and (place == "mdservice" or value not in top):
                yield f"{place}.{name}", value


def names(group: str) -> str:
    """A table of the exports, then the docstring of each, for Sphinx to fetch."""
    found = list(public(group))
    rows = [(code(name), _summary(name, value)) for name, value in found]
    directives = "\n\n".join(_directive(name, value) for name, value in found)
    return f"{table(('name', 'what it is'), rows)}\n\n{fence('{eval-rst}', directives)}"


def errors() -> str:
    """Every error of the package, with what it is a kind of."""
    module = resolve_name(_ERRORS)
    rows = []
    for name in module.__all__:
        error = getattr(module, name)
        parents = ", ".join(code(parent.__name__) for parent in error.__bases__)
        rows.append((code(name), parents, _summary(name, error)))
    directives = "\n\n".join(
        _directive(f"{_ERRORS}.{name}", getattr(module, name))
        for name in module.__all__
        if name not in mdservice.__all__  # these stand there
    )
    return f"{table(('error', 'is a kind of', 'when'), rows)}\n\n{fence('{eval-rst}', directives)}"


def _directive(name: str, value: object) -> str:
    if inspect.isclass(value):
        bases = "" if value.__bases__ == (object,) else "\n   :show-inheritance:"
        return f".. autoclass:: {name}\n   :members:{bases}"
    if inspect.isfunction(value):
        return f".. autofunction:: {name}"
    return f".. py:data:: {name}\n\n   {_about_constant(name)}"


def _summary(name: str, value: object) -> str:
    if inspect.isclass(value) or inspect.isfunction(value):
        text, _, _ = (inspect.getdoc(value) or "").partition("\n\n")
    else:
        text = _about_constant(name)
    return _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")


def _about_constant(name: str) -> str:
    """The text that stands below a constant, in the module that it comes from."""
    module, _, constant = name.rpartition(".")
    file = inspect.getsourcefile(resolve_name(module)) or ""
    body = ast.parse(Path(file).read_text()).body
    for node in body:
        if isinstance(node, ast.ImportFrom) and constant in [alias.name for alias in node.names]:
            return _about_constant(f"{node.module}.{constant}")
    for node, after in pairwise([*body, ast.Pass()]):
        if constant not in _assigned(node):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return " ".join(str(after.value.value).split())
        return f"``{ast.unparse(node.value)}``"
    raise LookupError(f"{name} is not assigned in {module}")


def _assigned(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [target.id for target in targets if isinstance(target, ast.Name)]
