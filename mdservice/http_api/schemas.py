"""The bodies of the API's answers, for its OpenAPI description.

Answers are encoded from the service's own models, so that prices stay exact decimals. Tests compare
the answers with these schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs
from pydantic import BaseModel, ConfigDict, Field, create_model

from mdservice.model.status import Status

__all__ = [
    "Answer",
    "HealthAnswer",
    "HeldPosition",
    "PositionsAnswer",
    "PriceAnswer",
    "PricesAnswer",
    "Problem",
    "StatusAnswer",
    "SubscriptionAnswer",
    "SubscriptionsAnswer",
    "ToldPosition",
]


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


class ToldPosition(HeldPosition):
    """A position with its optional fields."""

    multiplier: float = Field(default=1, description="Only if it is not 1.")
    problem: str | None = Field(default=None, description="Why its symbol is not subscribed.")


class PositionsAnswer(Answer):
    """The positions, as their source sent them. Numbers are exact decimals."""

    positions: list[ToldPosition] = Field(description="In the source's order.")
    warnings: list[str] | None = Field(
        default=None, description="Why they may be out of date; absent if they are current."
    )


@cache
def _described(kind: type[Any], name: str) -> type[Answer]:
    """The schema of a class of the status, made from its fields."""
    types = get_type_hints(kind)
    fields: dict[str, Any] = {
        field.name: (
            _schema_type(types[field.name]),
            Field(description=field.metadata["meaning"], examples=field.metadata["examples"]),
        )
        for field in attrs.fields(kind)
    }
    return create_model(name, __base__=Answer, __doc__=kind.__doc__, **fields)


def _schema_type(kind: Any) -> Any:
    """The JSON type of a type in the status."""
    if attrs.has(kind):
        return _described(kind, "_" + kind.__name__.removesuffix("Report"))
    if get_origin(kind) is Mapping:
        return dict[str, _schema_type(get_args(kind)[1])]  # type: ignore[misc]
    if get_origin(kind) is UnionType:
        return reduce(or_, map(_schema_type, get_args(kind)))
    return kind


StatusAnswer = _described(Status, "StatusAnswer")
