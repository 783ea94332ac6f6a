"""The view as lines for a pipe: what has changed since the last look. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mdservice.model.timestamps import format_ns
from mdservice.watch.view import Line, View

__all__ = ["ChangedLines"]

_SECONDS = len("2026-11-24T18:00:00")


class ChangedLines:
    """Remembers what it has told."""

    def __init__(self) -> None:
        self._told: dict[str, Any] = {}

    def of(self, view: View, now_ns: int) -> Iterator[str]:
        """``2026-11-24T18:00:00Z AAPL 187.135 10 @ 150.00 P&L +371.35 (+24.76 %) live``.

        One line for each position or symbol that has changed, and one for what is in the way.

        Args:
            view: As it is now.
            now_ns: UTC nanoseconds.
        """
        at = f"{format_ns(now_ns)[:_SECONDS]}Z"
        trouble = "; ".join(filter(None, (view.service.reason, *view.warnings)))
        if self._changed("", (view.service.state, trouble)):
            yield f"{at} service {view.service.state}{': ' if trouble else ''}{trouble}"
        places: dict[str, int] = {}
        for line in view.lines:
            place = places[line.symbol] = places.get(line.symbol, 0) + 1
            text = _text(line)
            if self._changed(f"{line.symbol} {place}", text):
                yield f"{at} {text}"

    def _changed(self, what: str, content: Any) -> bool:
        if self._told.get(what) == content:
            return False
        self._told[what] = content
        return True


def _text(line: Line) -> str:
    price = "-" if line.price is None else f"{line.price:f}"
    row = line.held
    if row is None:
        hint = f" (mdservice subscribe {line.symbol})" if line.status == "no price" else ""
        return f"{line.symbol} {price} {line.status}{hint}".rstrip()
    qty, avg = (
        "-" if number is None else f"{number:f}" for number in (row.qty, row.avg_entry_price)
    )
    pnl = "-" if row.unrealized_pnl is None else f"{row.unrealized_pnl:+,.2f}"
    pct = "" if row.unrealized_pnl_pct is None else f" ({row.unrealized_pnl_pct:+.2f} %)"
    return f"{line.symbol} {price} {qty} @ {avg} P&L {pnl}{pct} {line.status}"
