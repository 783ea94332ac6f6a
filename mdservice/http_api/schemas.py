"""The bodies of the API's answers, for its OpenAPI description.

Answers are encoded from the service's own models, so that prices stay exact decimals. Tests compare
the answers with these schemas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import attrs
import msgspec
from pydantic import BaseModel, ConfigDict, Field, create_model

from mdservice.model.bar import Bar
from mdservice.model.news import Article
from mdservice.model.order_book import OrderBook
from mdservice.model.status import Status
from mdservice.model.trade import Trade
from mdservice.model.trading_status import Imbalance, LimitBand, TradingStatus

__all__ = [
    "METRICS",
    "Answer",
    "HealthAnswer",
    "HeldPosition",
    "LatestAnswer",
    "NewsAnswer",
    "PositionsAnswer",
    "PriceAnswer",
    "PricesAnswer",
    "Problem",
    "RecordsAnswer",
    "StatusAnswer",
    "SubscriptionAnswer",
    "SubscriptionsAnswer",
    "ToldPosition",
]


METRICS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Prometheus text; OpenMetrics if `Accept` names it; protobuf, with native "
        "histograms, if `Accept` prefers it.",
        "content": {"text/plain": {"example": "mdservice_quotes_received_total 1042.0\n"}},
    }
}
"""The answer of ``/metrics``."""


class Answer(BaseModel):
    """An object without further fields."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """Why a request failed, and what to do."""

    detail: str = Field(
        description="One line for people.",
        examples=["'A PPL' is not a symbol: letters, digits, …"],
    )


class HealthAnswer(Answer):
    """Whether the service is live or ready, and the reasons if not."""

    ready: bool = Field(description="The status is 200 if true, else 503.")
    reasons: list[str] = Field(
        description="Why it is false; empty if it is true.",
        examples=[["the feed is not connected"]],
    )


class PriceAnswer(Answer):
    """The latest accepted quote of a symbol. Numbers are exact decimals."""

    symbol: str = Field(description="In capitals.", examples=["AAPL"])
    price: float | None = Field(
        description="Mid of bid and ask; the other side if one is 0; null if both are.",
        examples=[187.135],
    )
    bid: float = Field(description="Best bid; 0 if there is none.", examples=[187.12])
    ask: float = Field(description="Best offer; 0 if there is none.", examples=[187.15])
    bid_size: float = Field(description="Wanted at the bid.", examples=[2])
    ask_size: float = Field(description="Offered at the ask.", examples=[3])
    timestamp: str = Field(
        description="The exchange's time, UTC, RFC 3339 with nanoseconds.",
        examples=["2026-11-20T15:51:44.208912345Z"],
    )
    seq: int = Field(
        description="The number of this accepted quote of its symbol since the start, from 1. "
        "A step of more than one means that updates were conflated or missed.",
        examples=[1042],
    )


class PricesAnswer(Answer):
    """The latest prices; symbols without a price are omitted."""

    prices: list[PriceAnswer] = Field(description="In the requested order, or by symbol.")


_TIMESTAMP = (
    str,
    Field(
        description="The exchange's time, UTC, RFC 3339 with nanoseconds.",
        examples=["2026-11-20T15:51:44.208912345Z"],
    ),
)
_ATTRIBUTE = re.compile(
    r"^ {8}(\w+(?:, \w+)*): (.+?)(?=^ {8}\w|^ {4}\S|\Z)", re.MULTILINE | re.DOTALL
)


def _record_schema(record: type[Any]) -> type[Answer]:
    """The schema of a record's JSON text, made from its class."""
    types = get_type_hints(record)
    doc = record.__doc__ or ""
    meanings = {
        name: _in_json(" ".join(text.split()))
        for names, text in _ATTRIBUTE.findall(doc)
        for name in names.split(", ")
    }
    fields: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    for field in attrs.fields(record):
        if not field.metadata.get("written", True) or field.name in ("ts_recv_ns", "ts_event_ns"):
            continue
        meaning = meanings.get(field.name, field.name.replace("_", " ").capitalize() + ".")
        type_ = types[field.name]
        if msgspec.UnsetType in get_args(type_):
            left = reduce(or_, (one for one in get_args(type_) if one is not msgspec.UnsetType))
            optional[field.name] = (left, Field(default=None, description=meaning))
        else:
            fields[field.name] = (_written_type(type_), Field(description=meaning))
    seq = {"seq": fields.pop("seq")} if "seq" in fields else {}
    written = {**fields, "timestamp": _TIMESTAMP, **seq, **optional}
    name, summary = f"{record.__name__}Answer", doc.partition("\n")[0]
    return create_model(name, __base__=Answer, __doc__=summary, **written)


def _in_json(meaning: str) -> str:
    words = meaning.replace("``", "`").replace("None", "null").replace("UNSET", "left out")
    return words.replace("; 0 until it is accepted", "")


def _written_type(kind: Any) -> Any:
    """The JSON type of an attribute of a record."""
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        if others == [...]:
            return list[_written_type(first)]  # type: ignore[misc]
        return tuple[_written_type(first), *map(_written_type, others)]  # type: ignore[misc]
    return float if set(get_args(kind)) == {int, float} else kind


LatestAnswer = reduce(
    or_,
    map(_record_schema, (Trade, Bar, TradingStatus, LimitBand, Imbalance, OrderBook)),
    PriceAnswer,
)
"""The latest record of a symbol, of any kind that has one."""
_ArticleAnswer = _record_schema(Article)


class RecordsAnswer(Answer):
    """The latest records of one channel; symbols without one are omitted."""

    records: list[LatestAnswer] = Field(  # type: ignore[valid-type]
        description="In the requested order, or by symbol."
    )


class NewsAnswer(Answer):
    """Articles."""

    news: list[_ArticleAnswer] = Field(  # type: ignore[valid-type]
        description="The newest first."
    )


class SubscriptionAnswer(Answer):
    """The result of the change. ``pending``: the feed is down; it is made when the feed is back."""

    status: Literal["subscribed", "unsubscribed", "pending"] = Field(description="What was done.")
    symbol: str | None = Field(
        default=None, description="Only if one symbol was requested.", examples=["AAPL"]
    )
    symbols: list[str] = Field(description="All requested symbols.", examples=[["AAPL"]])


class SubscriptionsAnswer(Answer):
    """The wanted symbols, and the sources that want each."""

    symbols: list[str] = Field(description="All that are wanted.", examples=[["AAPL"]])
    sources: dict[str, list[str]] = Field(
        description="Who wants each: `api`, `positions`, `settings`.",
        examples=[{"AAPL": ["api", "positions", "settings"]}],
    )
    channels: dict[str, list[str]] = Field(
        description="The acknowledged subscriptions of the open connection; empty in an outage. "
        "`*` stands for every symbol.",
        examples=[{"AAPL": ["quotes"]}],
    )
    left_out: dict[str, dict[str, str]] = Field(
        description="The unfulfilled symbols, with the reasons.",
        examples=[{"MSFT": {"quotes": "symbol limit exceeded"}}],
    )


class HeldPosition(Answer):
    """A position, as its source sent it."""

    symbol: str = Field(
        description="In upper case; unchanged if it is not a valid symbol.",
        examples=["AAPL"],
    )
    qty: float | None = Field(
        description="Negative for a short position; null if unreadable.", examples=[10]
    )
    avg_entry_price: float | None = Field(description="Null if unreadable.", examples=[150.0])
    asset_class: Literal["us_equity", "crypto", "us_option"] = Field(
        description="The source's, or that of the symbol's form.", examples=["us_equity"]
    )
    multiplier: float | None = Field(
        description="Shares in one unit of `qty`; null if unreadable.", examples=[1]
    )


class ToldPosition(HeldPosition):
    """A position with everything that its source says of it."""

    current_price: float | None = Field(
        description="What the source has as the price now; null if it gives none.",
        examples=[187.13],
    )
    lastday_price: float | None = Field(
        description="The price at the last close; null if the source gives none.",
        examples=[185.4],
    )
    problem: str | None = Field(default=None, description="Why its symbol is not subscribed.")


class PositionsAnswer(Answer):
    """The positions, as their source sent them. Numbers are exact decimals."""

    positions: list[ToldPosition] = Field(description="In the source's order.")
    warnings: list[str] | None = Field(
        default=None, description="Why they may be out of date; absent if they are current."
    )
    differences: list[str] | None = Field(
        default=None,
        description="Quantities that the source's answer has corrected in the last minute, since "
        "the fills of the trading stream had others; absent without any.",
    )


@cache
def _described(kind: type[Any], name: str) -> type[Answer]:
    """The schema of a class of the status, made from its fields."""
    types = get_type_hints(kind)
    fields: dict[str, Any] = {
        field.name: (
            _schema_type(types[field.name]),
            Field(
                None if field.metadata["omitted"] else ...,
                description=field.metadata["meaning"],
                examples=field.metadata["examples"],
            ),
        )
        for field in attrs.fields(kind)
        if "metrics_only" not in field.metadata
    }
    return create_model(name, __base__=Answer, __doc__=kind.__doc__, **fields)


def _schema_type(kind: Any) -> Any:
    """The JSON type of a type in the status."""
    if attrs.has(kind):
        return _described(kind, "_" + kind.__name__.removesuffix("Report"))
    if get_origin(kind) is tuple:
        return list[_schema_type(get_args(kind)[0])]  # type: ignore[misc]
    if get_origin(kind) is Mapping:
        return dict[str, _schema_type(get_args(kind)[1])]  # type: ignore[misc]
    if get_origin(kind) is UnionType:
        return reduce(or_, map(_schema_type, get_args(kind)))
    return kind


StatusAnswer = _described(Status, "StatusAnswer")
