"""Lines of text, where there is no terminal that could be redrawn. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mdservice.model.timestamps import format_ns
from mdservice.watch.texts import money_text, number_text, percent_text, price_text
from mdservice.watch.view import Entry

__all__ = ["PlainLines", "entry_text"]

_SECONDS = len("2026-11-24T18:00:00")


def entry_text(entry: Entry) -> str:
    """``AAPL 187.135 10 @ 150.00 P&L +371.35 (+24.76 %) live``; ``-`` for what is not known."""
    parts = [entry.symbol, price_text(entry.price)]
    lot = entry.lot
    if lot is not None:
        parts += [number_text(lot.qty), "@", price_text(lot.avg_entry_price)]
        parts += ["P&L", money_text(lot.pnl)]
        if lot.pnl_pct is not None:
            parts.append(f"({percent_text(lot.pnl_pct)})")
    parts.append(entry.status)
    if entry.status == "not asked":
        parts.append(f"(mdservice subscribe {entry.symbol})")
    return " ".join(parts)


class PlainLines:
    """Tells each change once."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], str] = {}
        self._notes: tuple[str, ...] = ()

    def changed(self, entries: Iterable[tuple[tuple[str, int], Entry]], now_ns: int) -> list[str]:
        """A line for each entry that reads otherwise than before.

        Args:
            entries: By symbol and number of the lot.
            now_ns: The time that stands before them.
        """
        lines = []
        for place, entry in entries:
            text = entry_text(entry)
            if self._told.get(place) != text:
                self._told[place] = text
                lines.append(f"{_time(now_ns)} {text}")
        return lines

    def notes(self, warnings: tuple[str, ...], now_ns: int) -> list[str]:
        """A line for each warning that is new, and one when all are gone."""
        before, self._notes = self._notes, warnings
        if before and not warnings:
            return [f"{_time(now_ns)} # all is well again"]
        return [f"{_time(now_ns)} # {text}" for text in warnings if text not in before]


def _time(now_ns: int) -> str:
    return f"{format_ns(now_ns)[:_SECONDS]}Z"
