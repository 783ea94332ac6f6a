"""The parts of the reference that come from the code, at their places in the pages.

A page has such a part between two comments::

    <!-- from the code: metrics -->
    …
    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from docs.generate.calls import gateway_calls, gateway_schemas, service_calls, service_schemas
from docs.generate.commands import commands
from docs.generate.kinds import kind_names, kind_objects, kind_policies, kind_rules
from docs.generate.log_events import log_events
from docs.generate.messages import (
    account_messages,
    alert_message,
    breaker_messages,
    price_message,
    reader_rights,
    rights,
    status_messages,
    transaction,
)
from docs.generate.metrics import gateway_metrics, metrics
from docs.generate.names import GROUPS, errors, names
from docs.generate.settings import settings

__all__ = ["DRAWN", "PAGES", "PARTS", "filled", "parts_of"]

PAGES: Final = sorted((Path(__file__).parents[1] / "reference").glob("*.md"))

PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "settings": settings,
    "commands": commands,
    "calls of the service": service_calls,
    "answers of the service": service_schemas,
    "calls of the gateway": gateway_calls,
    "answers of the gateway": gateway_schemas,
    "price message": price_message,
    "status messages": status_messages,
    "account messages": account_messages,
    "alert message": alert_message,
    "breaker messages": breaker_messages,
    "transaction": transaction,
    "rights": rights,
    "rights of a reader": reader_rights,
    "kinds: names": kind_names,
    "kinds: rules": kind_rules,
    "kinds: words": kind_policies,
    "kinds: objects": kind_objects,
    "gateway metrics": gateway_metrics,
    "metrics": metrics,
    "log events": log_events,
    "errors": errors,
    **{f"names: {group}": partial(names, group) for group in GROUPS},
}

DRAWN: Final = Path(__file__).parents[1] / "pictures" / "quote-costs.svg"

_PART: Final = re.compile(r"<!-- from the code: ([^>]+) -->\n(.*?)<!-- end -->", re.DOTALL)


def parts_of(text: str) -> list[str]:
    """The names of a page's parts."""
    return [name for name, _ in _PART.findall(text)]


def filled(text: str) -> str:
    """The page as it has to be.

    Raises:
        KeyError: A part that there is not.
    """
    return _PART.sub(_fill, text)


def _fill(found: re.Match[str]) -> str:
    name = found[1]
    return f"<!-- from the code: {name} -->\n\n{PARTS[name]()}\n\n<!-- end -->"
