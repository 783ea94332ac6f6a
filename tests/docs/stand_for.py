"""What stands in the tests for the addresses, keys and commands that the pages name.

All of it, in one table. Fixed ports become free ones, so that tests beside each other and other
programs of this machine are not in the way.
"""

from __future__ import annotations

import re

import attrs


@attrs.frozen
class Places:
    """Where this page's things are.

    Attributes:
        redis: For ``redis://localhost:6379``: a server of the page's own.
        stream: The websocket of a simulator, in the place of Alpaca's.
        rest: Its REST API, in the place of both of Alpaca's.
        ports: Free ones, by the port that the page names.
    """

    redis: str
    stream: str
    rest: str
    ports: dict[str, str]


PORTS = ("7001", "8001", "8002", "8080", "8765", "8771")
"""Every port that a page may name for a program to listen at."""


def in_place(text: str, places: Places) -> str:
    """The text with everything replaced that is not there in a test."""
    account = (
        f"export MDSERVICE_FEED_URL={places.stream} "
        f"MDSERVICE_REST_URL={places.rest} MDSERVICE_TRADING_URL={places.rest}; "
    )
    table = [
        (r"redis://localhost:6379", places.redis),
        # The real account is the simulator's, over the same TCP and HTTP.
        (r"(?=export ALPACA_API_KEY=…)", account),
        (r"ALPACA_API_KEY=…", "ALPACA_API_KEY=PKDOCS"),
        (r"ALPACA_SECRET_KEY=…", "ALPACA_SECRET_KEY=docs-secret"),
        (r'"PK…"', '"PKDOCS"'),
        (r'"…"', '"docs-secret"'),
        # The environment in which the tests run was made by this very command.
        (r"python3 -m venv \.venv && \.venv/bin/pip install -q uv rust-just && ", ""),
        # No second installation: without what the recipe depends on, it is `install`.
        (r"\.venv/bin/just run\b", ".venv/bin/just --no-deps run"),
        # The checks run themselves, not inside each other: here, that there is such a recipe.
        (r"\.venv/bin/just (?!--)", ".venv/bin/just --no-deps --dry-run "),
    ]
    for pattern, replacement in table:
        text = re.sub(pattern, lambda _, new=replacement: new, text)
    for named, free in places.ports.items():
        text = re.sub(rf"(?<=[: ]){named}\b", free, text)
    return text


LASTING: dict[str, str] = {
    r"\bmdservice run\b": r"^p&l |^api ",
    r"\bjust --no-deps run\b": r"^p&l ",
    r"\bmdservice gateway\b": r"^p&l ",
    r"\bmdservice simulate\b": r"ws://",
    r"\bmdservice replay\b": r"to use it",
    r"\bmdservice watch\b(?!.*--once)": r"live",
    r"\bcurl .*(/stream\b|-N\b)": r"^event: ",
    r"\bpython\S* (?:docs/examples/)?\w+\.py\b": r".",
    r"\buvicorn\b": r"running on",
}
"""Commands that run until they are stopped, and what tells that they are at work."""

MAKES_SERVICE = re.compile(r"\bmdservice run\b|\bjust --no-deps run\b")
"""Commands that make the service of this folder; one at a time."""

ASKS = re.compile(r"^\S*mdservice (?:status|health|watch)\b|^curl (?!.*-X)")
"""Commands that change nothing: a reader who is a moment early gives them again."""
