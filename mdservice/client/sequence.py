"""Decides which quotes from keys and events are newer than the known ones. Pure.

Keys and events carry the same quotes, and some are missed while a connection is lost. The program
gets no quote twice, and none that is older than the last one of its symbol. Missed ones are
counted.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mdservice.model.quote import Quote, identity

__all__ = ["SequenceCheck", "Verdict", "judge"]


@attrs.frozen
class Verdict:
    """The relation of a quote to a known quote of the same symbol.

    Attributes:
        newer: Whether it comes after the known one.
        missed: How many accepted quotes lie between the two, by ``seq``.
        anew: Whether the service restarted between the two, so that ``seq`` began again.
    """

    newer: bool
    missed: int = 0
    anew: bool = False


_NOT_NEWER = Verdict(newer=False)


def judge(known: Quote, coming: Quote, *, in_order: bool) -> Verdict:
    """Compare two quotes of a symbol.

    Within a run of the service, ``seq`` goes up by one and time never goes back. If the
    time is later but ``seq`` is not larger, the service has restarted. If the times are equal and
    ``seq`` is smaller, the quote is an earlier one of the same run or belongs to a new run; only
    ``in_order`` distinguishes the two.

    Args:
        known: The newest quote so far.
        coming: The other quote.
        in_order: Whether ``coming`` was certainly published after ``known``. It may not be if
            ``known`` was a key, and earlier events are still on their way.
    """
    if coming.ts_event_ns < known.ts_event_ns:
        return _NOT_NEWER
    if coming.seq > known.seq:
        return Verdict(newer=True, missed=coming.seq - known.seq - 1)
    if coming.ts_event_ns == known.ts_event_ns and (
        not in_order or identity(coming) == identity(known)
    ):
        return _NOT_NEWER
    return Verdict(newer=True, missed=max(0, coming.seq - 1), anew=True)


class SequenceCheck:
    """The newest quote of each symbol, with counts of missed quotes and restarts.

    Attributes:
        missed: Accepted quotes that this reader did not get.
        steps: How often a symbol's ``seq`` went up by more than one.
        starts: How often a symbol's ``seq`` began again.
        left_out: Quotes that were not newer than the known ones.
    """

    def __init__(self) -> None:
        self.missed = 0
        self.steps = 0
        self.starts = 0
        self.left_out = 0
        self._latest: dict[str, Quote] = {}

    def __len__(self) -> int:
        return len(self._latest)

    def latest(self, symbol: str) -> Quote | None:
        """The newest quote of a symbol."""
        return self._latest.get(symbol)

    def all_latest(self) -> list[Quote]:
        """The newest quote of each symbol, in no order."""
        return list(self._latest.values())

    def newer(self, quotes: Iterable[Quote], *, in_order: bool) -> list[Quote]:
        """Return the quotes that are newer than the known ones, and remember them.

        Args:
            quotes: From keys or events.
            in_order: As in :func:`judge`; never for keys.
        """
        latest = self._latest
        found: list[Quote] = []
        for quote in quotes:
            known = latest.get(quote.symbol)
            if known is None or (
                quote.seq == known.seq + 1 and quote.ts_event_ns >= known.ts_event_ns
            ):
                pass  # the usual case, without a call
            elif not self._count(judge(known, quote, in_order=in_order)):
                continue
            latest[quote.symbol] = quote
            found.append(quote)
        return found

    def _count(self, verdict: Verdict) -> bool:
        if not verdict.newer:
            self.left_out += 1
        elif verdict.anew:
            self.starts += 1
        elif verdict.missed:
            self.steps += 1
        self.missed += verdict.missed
        return verdict.newer
