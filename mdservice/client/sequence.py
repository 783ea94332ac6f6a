"""Which of the quotes that come from keys and events are newer than what is known. Pure.

Keys and events tell the same story twice, and a connection that was lost leaves out a part of
it. Per symbol nothing may go back in time and nothing come twice; what was missed is counted.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mdservice.model.quote import Quote, identity

__all__ = ["SequenceCheck", "Verdict", "judge"]


@attrs.frozen
class Verdict:
    """What a quote is to one who knows another of the same symbol.

    Attributes:
        newer: Whether it comes after the known one.
        missed: How many accepted quotes are known to lie between the two, by ``seq``.
        anew: Whether the service was started anew between the two: ``seq`` began again.
    """

    newer: bool
    missed: int = 0
    anew: bool = False


_NOT_NEWER = Verdict(newer=False)


def judge(known: Quote, coming: Quote, *, in_order: bool) -> Verdict:
    """Compare two quotes of a symbol.

    Within a run of the service ``seq`` goes up by one and time never back. Where time went on
    though ``seq`` did not, the service was started anew. At the same time a smaller ``seq`` is
    either an earlier quote of the same run or one of a new run, and only the way in which it
    came can tell.

    Args:
        known: The newest one so far.
        coming: The other.
        in_order: Whether ``coming`` is known to have been published after ``known``. It is
            not where ``known`` was a key and events from before are still on their way.
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
    """The newest quote of each symbol, and what was noticed on the way.

    Attributes:
        missed: Quotes that are known to have been accepted and were not seen.
        steps: How often a symbol's ``seq`` went up by more than one.
        starts: How often a symbol's ``seq`` began again.
        left_out: Quotes that were not newer than what was known.
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
        """Those that are newer than what is known, which they become.

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
                pass  # nearly all of them, so without a call
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
