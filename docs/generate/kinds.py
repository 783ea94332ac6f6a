"""The reference of the kinds of records: names, rules, fields, and examples.

The examples are made by the real encoders.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import attrs

from docs.generate.answers import AT_NS, QUOTE
from docs.generate.text import code, fence, paragraph, table
from mdservice.model.bar import Bar
from mdservice.model.feeds import FEEDS, Feed, feed_of
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    KINDS,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
    Order,
    Overflow,
    Repair,
)
from mdservice.model.news import Article
from mdservice.model.order_book import OrderBook
from mdservice.model.trade import Cancel, Correction, Trade
from mdservice.model.trading_status import Imbalance, LimitBand, TradingStatus

__all__ = [
    "EXAMPLES",
    "kind_names",
    "kind_objects",
    "kind_policies",
    "kind_rules",
    "repair_in_words",
]

_S = 1_000_000_000
_MINUTE_NS = AT_NS - AT_NS % (60 * _S)
_DAY_NS = 24 * 60 * 60 * _S
_OPTION = "AAPL261218C00200000"

EXAMPLES: Final[Mapping[Kind[Any], tuple[Any, ...]]] = {
    QUOTES: (
        QUOTE,
        attrs.evolve(
            QUOTE, symbol="BTC/USD", bid=91_402.5, ask=91_410.0, bid_size=0.7431, ask_size=0.25
        ),
        attrs.evolve(QUOTE, symbol=_OPTION, bid=4.1, ask=4.25, bid_size=11),
    ),
    TRADES: (
        Trade("AAPL", 187.13, 100, "V", ("@", "I"), "C", 52983525029461, AT_NS, AT_NS, 318),
        Trade(
            "BTC/USD", 91_410.0, 0.0125, None, (), None, 4150712039, AT_NS, AT_NS, 96,
            taker_side="buy",
        ),
        Trade(_OPTION, 4.2, 3, "C", ("I",), None, None, AT_NS, AT_NS, 7),
    ),
    CORRECTIONS: (
        Correction(
            "AAPL", "V", "C", 52983525029461, 187.13, 100, ("@", "I"), 52983525029999, 187.12,
            100, ("@", "I"), AT_NS + 9 * _S, AT_NS, 1,
        ),
    ),
    CANCELS: (
        Cancel("AAPL", "V", "C", 52983525029461, 187.13, 100, "cancel", AT_NS + 9 * _S, AT_NS, 1),
    ),
    BARS: (
        Bar(
            "AAPL", 187.02, 187.19, 186.97, 187.13, 24_310, 271, 187.0842, _MINUTE_NS, AT_NS, 75,
        ),
        Bar(
            "AAPL", 187.02, 187.19, 186.97, 187.13, 24_410, 272, 187.0844, _MINUTE_NS, AT_NS, 76,
            updated=True,
        ),
        Bar("BTC/USD", 91_406.25, 91_406.25, 91_406.25, 91_406.25, 0, 0, 0.0, _MINUTE_NS, AT_NS, 9),
    ),
    DAILY_BARS: (
        Bar(
            "AAPL", 185.4, 188.01, 184.92, 187.13, 8_104_311, 91_270, 186.6201,
            _MINUTE_NS - _MINUTE_NS % _DAY_NS + 5 * 3600 * _S, AT_NS, 75, updated=True,
        ),
    ),
    STATUSES: (
        TradingStatus(
            "AAPL", "H", "Trading Halt", "T12", "Trading Halted; For information requested by "
            "NASDAQ", "C", AT_NS, AT_NS, 1,
        ),
    ),
    LULDS: (LimitBand("AAPL", 196.47, 177.77, "B", "C", AT_NS, AT_NS, 42),),
    IMBALANCES: (Imbalance("AAPL", 187.12, "C", AT_NS, AT_NS, 3),),
    ORDERBOOKS: (
        OrderBook(
            "BTC/USD",
            ((91_402.5, 0.7431), (91_400.0, 1.2)),
            ((91_410.0, 0.25), (91_415.5, 2.0)),
            AT_NS,
            AT_NS,
            5120,
        ),
    ),
    NEWS: (
        Article(
            48_712_345,
            "Apple Raises Its Dividend",
            "The board declared a cash dividend.",
            "A. Writer",
            "",
            "https://news.example/48712345",
            "benzinga",
            ("AAPL",),
            "2026-11-20T15:51:40Z",
            "2026-11-20T15:51:44.208912345Z",
            AT_NS,
            AT_NS,
        ),
    ),
}  # fmt: skip
"""Records of each kind, one for each asset class or form of it."""

_NONE: Final = "–"  # noqa: RUF001 - as the other tables write it
_COMMON: Final = ("symbol", "ts_event_ns", "ts_recv_ns", "seq", "wire")
_REPAIRS: Final = {
    Repair.FROM_HISTORY: "repaired",
    Repair.LATEST: "refreshed",
    Repair.SUBSCRIBE_AGAIN: "refreshed",
    Repair.TOLD: "reported",
}
"""What readers get of a repair, in the words of this documentation."""


def kind_names() -> str:
    """Each kind's names and where it comes from."""
    head = ("channel", "subscribed as", "of", "latest value", "event", "expires after")
    return table(head, [_names(kind) for kind in KINDS])


def _names(kind: Kind[Any]) -> tuple[str, ...]:
    latest = code(f"{kind.key_prefix}{{S}}") if kind.has_key else _NONE
    if kind.stream is not None:
        latest = f"stream {code(kind.stream.name)}, about {kind.stream.maxlen:,} entries"
    return (
        f"[{code(kind.channel)}](#{kind.channel.lower()})",
        ", ".join(map(code, kind.topics)),
        ", ".join(feed.name for feed in FEEDS if kind in feed.kinds),
        latest,
        code(kind.event),
        _life(kind) if kind.has_key else _NONE,
    )


def _life(kind: Kind[Any]) -> str:
    if kind.ttl_s is None:
        return "[`price_ttl`](settings.md#price_ttl)"
    days = kind.ttl_s // 86_400
    return f"{days} day{'s' * (days > 1)}"


def kind_rules() -> str:
    """Each kind's rules: order, identity, overflow and repair."""
    head = ("channel", "order", "a repeat has the same", "a full backlog", "missed records")
    return table(head, [_rules(kind) for kind in KINDS])


def _rules(kind: Kind[Any]) -> tuple[str, ...]:
    return (
        code(kind.channel),
        kind.order.value,
        _by_feed({feed: _identity(kind, feed) for feed in _feeds(kind)}),
        kind.overflow.value,
        _by_feed({feed: repair_in_words(kind, feed) for feed in _feeds(kind)}),
    )


def repair_in_words(kind: Kind[Any], feed: Feed) -> str:
    """``repaired``, ``refreshed`` or ``reported``, or in which channel's gap it is."""
    if kind.channel not in kind.topics:
        return f"in the gap of {code(kind.topics[0])}"
    return _REPAIRS[feed.repair(kind)]


def _feeds(kind: Kind[Any]) -> list[Feed]:
    return [feed for feed in FEEDS if kind in feed.kinds]


def _by_feed(told: Mapping[Feed, str]) -> str:
    """``repaired``, or ``stocks, crypto: repaired; options: refreshed``."""
    feeds: dict[str, list[str]] = {}
    for feed, text in told.items():
        feeds.setdefault(text, []).append(feed.name)
    if len(feeds) == 1:
        return next(iter(feeds))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in feeds.items())


def _identity(kind: Kind[Any], feed: Feed) -> str:
    """The fields whose change makes another record, found by changing each."""
    record = _example(kind, feed)
    known = kind.identity(record)
    values = attrs.asdict(record, recurse=False)
    names = [name for name in values if name not in _COMMON[1:] and values[name] is not None]
    parts = [
        code(name) for name in names if kind.identity(_changed(record, name, values[name])) != known
    ]
    for step_ns, name in ((1, "`timestamp`"), (_DAY_NS, "New York date")):
        if kind.identity(attrs.evolve(record, ts_event_ns=record.ts_event_ns + step_ns)) != known:
            parts.append(name)
            break
    content = [name for name in json.loads(kind.encode(record)) if name in names]
    if len(parts) > len(content) - ("updated" in content):
        return "content"
    return ", ".join(parts)


def _example(kind: Kind[Any], feed: Feed) -> Any:
    records = EXAMPLES[kind]
    return next((one for one in records if feed_of(one.symbol) is feed), records[0])


def _changed(record: Any, name: str, value: object) -> Any:
    other: object = "other"
    if isinstance(value, tuple):
        other = (*value, (1.0, 1.0) if value and isinstance(value[0], tuple) else "other")
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, (int, float)):
        other = value + 1
    return attrs.evolve(record, **{name: other})


def kind_policies() -> str:
    """What the words of the rules mean."""
    parts = []
    for title, policy in (("Order", Order), ("A full backlog", Overflow)):
        words = _meanings(policy)
        lines = [f"- **{member.value}**: {words[member.name]}" for member in policy]
        parts.append("\n\n".join((f"**{title}**", "\n".join(map(_item, lines)))))
    return "\n\n".join(parts)


def _item(line: str) -> str:
    return paragraph(line).replace("\n", "\n  ")


def _meanings(policy: type[Enum]) -> dict[str, str]:
    """The text below each member, by its name."""
    [definition] = ast.parse(inspect.getsource(policy)).body
    found = {}
    for node, after in pairwise(getattr(definition, "body", ())):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr):
            name, text = ast.unparse(node.targets[0]), ast.literal_eval(after.value)
            found[name] = " ".join(str(text).split()).replace("``", "`")
    return found


def kind_objects() -> str:
    """The fields of each kind's object, and examples."""
    return "\n\n".join(part for kind in KINDS for part in _object(kind))


def _object(kind: Kind[Any]) -> Iterator[str]:
    yield f"### `{kind.channel}`"
    record = type(EXAMPLES[kind][0])
    summary = (inspect.getdoc(record) or "").partition("\n\n")[0]
    yield paragraph(summary.replace("``", "`"))
    if kind is QUOTES:
        yield "Its fields are those of the [price object](redis.md#the-price-object)."
    else:
        fields: dict[tuple[str, str], list[str]] = {}
        for name, type_, meaning in _fields(kind, record):
            fields.setdefault((type_, meaning), []).append(code(name))
        rows = [(", ".join(names), *same) for same, names in fields.items()]
        yield table(("field", "type", "meaning"), rows)
    yield "\n\n".join(fence("json", kind.encode(one).decode()) for one in EXAMPLES[kind])


def _fields(kind: Kind[Any], record: type) -> Iterator[tuple[str, str, str]]:
    types, told = get_type_hints(record), _told(record)
    written = {name for one in EXAMPLES[kind] for name in json.loads(kind.encode(one))}
    for field in attrs.fields(record):
        if field.name in written and field.name not in _COMMON:
            yield field.name, _type(types[field.name]), told[field.name]


def _told(record: type) -> dict[str, str]:
    """The meaning of each attribute, from the docstring of the class."""
    text = (inspect.getdoc(record) or "").partition("Attributes:\n")[2]
    found = {}
    for names, meaning in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
        words = " ".join(meaning.split()).replace("``", "`")
        for name in names.split(", "):
            found[name] = re.sub(r"\bNone\b", "null", words).replace("UNSET", "left out")
    return found


def _type(hint: Any) -> str:
    """``float | None`` → ``number or null``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType or str(origin) == "typing.Union":
        names = dict.fromkeys(_type(one) for one in inner if "Unset" not in str(one))
        return " or ".join(sorted(names, key=lambda name: name == "null"))
    if origin is Literal:
        return ", ".join(code(json.dumps(one)) for one in inner)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return (
                "list of pairs" if get_origin(inner[0]) is tuple else f"list of {_type(inner[0])}s"
            )
        return "pair"
    return {NoneType: "null", bool: "boolean", int: "number", float: "number", str: "string"}[hint]
