"""The bodies of the API's answers, for its OpenAPI description.

The answers themselves are encoded from the service's own models, since a price has to leave
as the exact decimal. Tests hold the answers against these schemas.
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
    """An object without any field but its own."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """Why a request was not carried out, and what to do."""

    detail: str = Field(
        description="One line for people.",
        examples=["'A PPL' is not a symbol: letters, digits, …"],
    )


class HealthAnswer(Answer):
    """Whether the service is fit, and what is in the way where it is not."""

    ready: bool = Field(description="Fit; the status is 200 then, else 503.")
    reasons: list[str] = Field(
        description="What is in the way; empty where nothing is.",
        examples=[["the feed is not connected"]],
    )


class PriceAnswer(Answer):
    """The latest accepted quote of a symbol. Numbers carry the exact decimal."""

    symbol: str = Field(description="In capitals.", examples=["AAPL"])
    price: float | None = Field(
        description="Mid of bid and ask; the one side where only one is active; null with none.",
        examples=[187.135],
    )
    bid: float = Field(description="Best bid; 0 where none is active.", examples=[187.12])
    ask: float = Field(description="Best offer; 0 where none is active.", examples=[187.15])
    bid_size: float = Field(description="Wanted at the bid.", examples=[2])
    ask_size: float = Field(description="Offered at the ask.", examples=[3])
    timestamp: str = Field(
        description="The exchange's time, UTC, RFC 3339 with nanoseconds.",
        examples=["2026-11-20T15:51:44.208912345Z"],
    )
    seq: int = Field(
        description="Which accepted quote of its symbol this is since the start, from 1. "
        "A step of more than one: updates were conflated or missed.",
        examples=[1042],
    )


class PricesAnswer(Answer):
    """The latest prices; symbols without one are left out."""

    prices: list[PriceAnswer] = Field(description="In the order asked for, else by symbol.")


class SubscriptionAnswer(Answer):
    """What became of the change. ``pending``: the feed is away; it is made on its return."""

    status: Literal["subscribed", "unsubscribed", "pending"] = Field(description="What was done.")
    symbol: str | None = Field(
        default=None, description="Only where one symbol was asked for.", examples=["AAPL"]
    )
    symbols: list[str] = Field(description="All that were asked for.", examples=[["AAPL"]])


class SubscriptionsAnswer(Answer):
    """The wanted symbols, and who wants each."""

    symbols: list[str] = Field(description="All that are wanted.", examples=[["AAPL"]])
    sources: dict[str, list[str]] = Field(
        description="Who wants each: `api`, `positions`, `settings`.",
        examples=[{"AAPL": ["api", "positions", "settings"]}],
    )
    channels: dict[str, list[str]] = Field(
        description="What the feed has acknowledged on the open connection; empty in an outage. "
        "`*` stands for every symbol.",
        examples=[{"AAPL": ["quotes"]}],
    )
    left_out: dict[str, dict[str, str]] = Field(
        description="What is wanted and the feed does not give, with the reason.",
        examples=[{"MSFT": {"quotes": "symbol limit exceeded"}}],
    )


class HeldPosition(Answer):
    """A position, as its source told it."""

    symbol: str = Field(
        description="In capitals; as its source wrote it where that is no symbol.",
        examples=["AAPL"],
    )
    qty: float | None = Field(
        description="Below 0 for a short position; null where it is unreadable.", examples=[10]
    )
    avg_entry_price: float | None = Field(
        description="Null where it is unreadable.", examples=[150.0]
    )


class ToldPosition(HeldPosition):
    """A position with what else its source told of it."""

    multiplier: float = Field(default=1, description="Only where it is not 1.")
    problem: str | None = Field(default=None, description="Why its price is not followed.")


class PositionsAnswer(Answer):
    """The positions, as their source told them. Numbers carry the exact decimal."""

    positions: list[ToldPosition] = Field(description="In the source's order.")
    warnings: list[str] | None = Field(
        default=None, description="Why they may be out of date; only where they may."
    )


@cache
def _described(told: type[Any], name: str) -> type[Answer]:
    """The schema of a class of the status, from the fields as they are declared there."""
    types = get_type_hints(told)
    fields: dict[str, Any] = {
        field.name: (
            _schema_type(types[field.name]),
            Field(description=field.metadata["meaning"], examples=field.metadata["examples"]),
        )
        for field in attrs.fields(told)
    }
    return create_model(name, __base__=Answer, __doc__=told.__doc__, **fields)


def _schema_type(told: Any) -> Any:
    """A type of the status as its JSON has it."""
    if attrs.has(told):
        return _described(told, "_" + told.__name__.removesuffix("Report"))
    if get_origin(told) is Mapping:
        return dict[str, _schema_type(get_args(told)[1])]  # type: ignore[misc]
    if get_origin(told) is UnionType:
        return reduce(or_, map(_schema_type, get_args(told)))
    return told


StatusAnswer = _described(Status, "StatusAnswer")
