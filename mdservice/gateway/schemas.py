"""The bodies of the gateway's answers, for its OpenAPI description."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mdservice.api.schemas import Answer, HeldPosition

__all__ = ["PnlAnswer"]


class _Row(HeldPosition):
    """A position at its latest price."""

    current_price: float | None = Field(
        description="The mid of its latest usable quote, else the price that the position's source "
        "tells; null where it is unpriced.",
        examples=[187.135],
    )
    unrealized_pnl: float | None = Field(
        description="Exact; null where it is unpriced.", examples=[371.35]
    )
    unrealized_pnl_pct: float | None = Field(
        description="Of |qty| times avg_entry_price, to 4 places, half-even.", examples=[24.7567]
    )
    last_updated: str | None = Field(
        description="The exchange's time of that quote, UTC, RFC 3339 with nanoseconds; null for a "
        "price of the position's source.",
        examples=["2026-11-20T15:51:44.208912345Z"],
    )
    status: Literal["live", "stale", "unpriced"] = Field(
        description="`stale`: the price is older than the age limit, its key has expired, a newer "
        "quote has no side or too wide a spread, or the position's source tells it."
    )
    problem: str | None = Field(default=None, description="Why it is never priced.")


class PnlAnswer(Answer):
    """Every position at its latest price. Numbers carry the exact decimal."""

    positions: list[_Row] = Field(description="In the source's order; none is left out.")
    total_unrealized_pnl: float = Field(
        description="Over the priced positions, live and stale.", examples=[371.35]
    )
    priced: int = Field(description="Rows with a price, live or stale.")
    unpriced: int = Field(description="Rows without one.")
    warnings: list[str] | None = Field(
        default=None,
        description="Why this may be out of date, and which positions cannot be used; only where "
        "there is something to say.",
    )
