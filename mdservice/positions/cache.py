"""The last known positions of one process: the source's answers, and the fills since then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from math import inf
from typing import Final

import anyio
import attrs

from mdservice.clock import Clock
from mdservice.errors import PositionsError, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.model.symbol import without_slash
from mdservice.observability.logging import get_logger, masked
from mdservice.pnl.numbers import EXACT, ZERO, plain, sums_up
from mdservice.positions.sources import PositionSource
from mdservice.positions.trade_updates import TradeUpdate, position_after

__all__ = ["PATIENCE_S", "PAUSE_S", "SHOWN_S", "PositionCache"]

_log = get_logger(__name__)

PATIENCE_S: Final = 5.0
"""How long :meth:`PositionCache.current` waits for the source before it returns the last answer."""
SHOWN_S: Final = 60.0
"""How long :meth:`PositionCache.differences` shows a difference."""
_GRACE_S: Final = 2.0
"""How long the event of a fill may take that an answer of the source has already."""
_SETTLED_S: Final = 1.0
"""How long an answer of the source may miss a fill whose event has come before it was asked."""
PAUSE_S: Final = 0.5
"""Between two requests that events ask for. Alpaca answers 200 calls a minute on its free plan."""
_MOST_HEARD: Final = 50_000
_MOST_SHOWN: Final = 20
_NS_PER_S: Final = 1_000_000_000


class PositionCache:
    """Keeps the positions of a process, asks their source, and applies the fills of events.

    Callers await :meth:`current` (or :meth:`refresh`, to poll) and use the result. If the source
    fails, the last answer stays, and :meth:`warning` says why it may be out of date.

    :meth:`apply` changes the position of one symbol by an event. A quantity never goes back:

    - An event that is older than the symbol's newest one, or its repeat, changes nothing.
    - An event that is older than the request of the last answer is in the answer. It changes
      nothing, and the source is asked again at once if its quantity is another.
    - One between the request and its answer may be in the answer. It is applied if it follows
      the answer's quantity, and the source is asked again at once.
    - An answer that was asked for before an event came does not undo the event. The source is
      asked again, and its next answer counts.

    Where an answer has another quantity than the events, the answer counts, and
    :meth:`differences` reports it, unless the missing event comes soon after.

    Args:
        source: The source of the positions.
        interval_s: How old they may be, seconds; if 0, each :meth:`current` asks the source.
        clock: The time.
        symbols: Keep only positions in these symbols, as the source or the feed writes them; empty
            means all.
        pause_s: The least time between two requests that events ask for, seconds.

    Attributes:
        interval_s: As given.
        positions: The source's last answer, with the fills since then; empty before the first
            answer.
        last_error: Why the last request failed, or why its answer may be out of date; else None.
        answers: The number of answers.
        version: Grows with each change of the positions, and with the first answer.
        applied: Events that changed a position.
        late: Events that did not, because they were repeated, late, or in the last answer already.
        differed: Quantities that an answer had and the events had not.
    """

    def __init__(
        self,
        source: PositionSource,
        interval_s: float,
        clock: Clock,
        symbols: Collection[str] = (),
        pause_s: float = PAUSE_S,
    ) -> None:
        self.interval_s = interval_s
        self.positions: tuple[Position, ...] = ()
        self.last_error: str | None = None
        self.answers = 0
        self.version = 0
        self.applied = 0
        self.late = 0
        self.differed = 0
        self._source = source
        self._clock = clock
        self._symbols = frozenset(symbols)
        self._pause_s = pause_s
        self._asking = anyio.Lock()
        self._asked_s: float | None = None
        self._answered_s: float | None = None
        self._overdue = False
        """Whether a caller has waited in full since the source last answered or failed."""
        self._changed = anyio.Event()
        self._wanted = anyio.Event()
        self._next_wanted_s = -inf
        """When an event may have the source asked again, monotonic seconds."""
        self._has_events = False
        """Whether events were followed once, so that an answer can differ from them."""
        self._heard: dict[str, _Heard] = {}
        """The newest event of each symbol of the feed."""
        self._asked_ns = 0
        """When the request of the last answer began, UTC ns: the answer has every earlier event."""
        self._covered_ns = 0
        """The last answer may have every event up to this time, Alpaca's UTC nanoseconds."""
        self._behind_ns = 0
        """How far this machine's clock is behind Alpaca's, at least, by the times of events."""
        self._unexplained: dict[str, _Difference] = {}
        self._shown: dict[str, _Difference] = {}

    @property
    def address(self) -> str:
        """The source's address, without any secret."""
        return self._source.address

    def age_s(self) -> float | None:
        """Seconds since the last answer; None before the first."""
        return None if self._answered_s is None else self._clock.monotonic() - self._answered_s

    def warning(self) -> str | None:
        """Why they may be out of date, or None."""
        if self.last_error is None and self._overdue:
            return f"{self.address} does not answer within {PATIENCE_S:g} s"
        return self.last_error

    def differences(self) -> list[str]:
        """What an answer of the source has corrected lately, also the source's own corrections."""
        now_s = self._clock.monotonic()
        self._report_differences(now_s)
        found = [str(each) for each in self._shown.values()][-_MOST_SHOWN:]
        return [*getattr(self._source, "differences", ()), *found]

    def position(self, priced_by: str) -> Position | None:
        """The first position in a symbol of the feed, or None."""
        return next((each for each in self.positions if each.priced_by == priced_by), None)

    async def current(self, *, polled: bool) -> tuple[Position, ...]:
        """The positions; the source is asked first where they are older than the interval.

        Args:
            polled: Whether a task calls :meth:`refresh` at that interval. Its last result is
                current then, unless the interval is 0.

        Raises:
            PositionsUnavailable: The source has never answered.
        """
        if not self._is_current(polled=polled):
            with anyio.move_on_after(PATIENCE_S) as patience:
                async with self._asking:
                    if not self._is_current(polled=polled):
                        await self._ask()
            self._overdue = self._overdue or patience.cancelled_caught
        if not self.answers:
            reason = self.warning() or f"{self.address} has not answered yet"
            raise PositionsUnavailable(f"the positions are not known: {reason}")
        return self.positions

    async def refresh(self) -> tuple[Position, ...]:
        """Ask the source now, and return the positions; cancelling changes nothing."""
        async with self._asking:
            await self._ask()
        return self.positions

    async def refresh_when_due(self, least_s: float = 0.0) -> tuple[Position, ...]:
        """Wait until they are older than the interval or an event wants them, then refresh.

        Args:
            least_s: The interval where :attr:`interval_s` is 0.
        """
        if self._asked_s is not None:
            with anyio.move_on_after(self.interval_s or least_s):
                await self._wanted.wait()
                await anyio.sleep(max(0.0, self._next_wanted_s - self._clock.monotonic()))
                self._next_wanted_s = self._clock.monotonic() + self._pause_s
        return await self.refresh()

    def want(self) -> None:
        """Let :meth:`refresh_when_due` ask at once, also where a request is under way."""
        self._wanted.set()

    def follow_events(self) -> None:
        """Note that events come from now on; what was missed before, the next answer has."""
        self._has_events = True
        self._behind_ns = 0
        self.want()

    async def change(self, since: int, limit_s: float) -> None:
        """Wait until the positions have another :attr:`version`, or for so many seconds."""
        with anyio.move_on_after(limit_s):
            while self.version == since:
                await self._changed.wait()

    def apply(self, update: TradeUpdate, given: Sequence[Position | None] = ()) -> bool:
        """Apply an event; return whether the positions have changed.

        Args:
            update: The event.
            given: The position after it, where the sender knows it, or None if it is closed. It
                is not taken if the event does not follow the known position.
        """
        if update.position_qty is None or not self._is_chosen(update):
            return False
        key, now_ns = update.priced_by, self._clock.utc_ns()
        self._behind_ns = max(self._behind_ns, update.timestamp_ns - now_ns)
        held = [each for each in self.positions if each.priced_by == key]
        if not self._is_new(key, update, held):
            self.late += 1
            return False
        before = held[0] if held else None
        follows = _follows(before, update)
        if not follows or before is None:
            self.want()  # an event is missing, and with it the right price; or a row has more
        if given and not follows:
            return False  # the sender may be another service, on the same channel
        seen = self._heard.pop(key, None)
        self._heard[key] = _Heard.after(seen, update, self._clock.monotonic())
        if len(self._heard) > _MOST_HEARD:
            del self._heard[next(iter(self._heard))]
        if not self.answers or len(held) > 1 or any(each.problem for each in held):
            self.want()  # the next answer has it
            return False
        after = given[0] if given else position_after(before, update)
        known = after is None or after.avg_entry_price is not None
        if not known or _quantity([] if after is None else [after]) != update.position_qty:
            self.want()  # the sender knows a later event, or no price is known
            return False
        self._explain(key, update)
        self.applied += 1
        return self._replace(before, after)

    def _is_chosen(self, update: TradeUpdate) -> bool:
        names = (without_slash(update.symbol), update.priced_by)
        return not self._symbols or not self._symbols.isdisjoint(names)

    def _is_new(self, key: str, update: TradeUpdate, held: Sequence[Position]) -> bool:
        """Whether the event is newer than all that is known of its symbol."""
        quantity = _quantity(held)
        seen = self._heard.get(key)
        if seen is not None:
            if update.timestamp_ns < seen.update.timestamp_ns or update.identity in seen.identities:
                self._explain(key, update)
                return False
            if update.timestamp_ns == seen.update.timestamp_ns:
                change = update.change
                if change is None or EXACT.add(seen.quantity, change) != update.position_qty:
                    self.want()  # which of the two is the later one cannot be known
                    return False
        if self.answers and update.timestamp_ns <= self._covered_ns + self._behind_ns:
            self._explain(key, update)
            if quantity == update.position_qty:
                return False
            self.want()
            # The source may have made its answer before the fill.
            meanwhile = update.timestamp_ns > self._asked_ns + self._behind_ns
            return meanwhile and _follows(held[0] if held else None, update)
        return True

    def _replace(self, before: Position | None, after: Position | None) -> bool:
        known = self.positions
        if before is None:
            self.positions = known if after is None else (*known, after)
        else:
            replaced = (after if each is before else each for each in known)
            self.positions = tuple(each for each in replaced if each is not None)
        if self.positions == known:
            return False
        self._notify()
        return True

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()

    def _is_current(self, *, polled: bool) -> bool:
        if self._asked_s is None:
            return False
        if polled and self.answers:
            # While the source is overdue, only the polling task waits for it.
            return self.interval_s > 0 or self._overdue
        return self._clock.monotonic() < self._asked_s + self.interval_s

    async def _ask(self) -> None:
        self._wanted = anyio.Event()
        began_s, began_ns = self._clock.monotonic(), self._clock.utc_ns()
        try:
            positions = self._chosen(await self._source.fetch())
        except PositionsError as exc:
            self._note(str(exc))
        except Exception as exc:  # noqa: BLE001 - a program's own source may raise anything
            # The message may hold a secret, so it goes only to the log.
            _log.exception("positions_source_is_broken", source=self.address)
            self._note(f"{self.address}: {type(exc).__name__}, see the log")
        else:
            self._keep(positions, began_s)
            self._asked_ns = began_ns
        self._asked_s = self._clock.monotonic()
        self._overdue = False

    def _chosen(self, positions: Sequence[Position]) -> tuple[Position, ...]:
        if not self._symbols:
            return tuple(positions)
        return tuple(
            each
            for each in positions
            if not self._symbols.isdisjoint((each.symbol, each.priced_by))
        )

    def _keep(self, positions: tuple[Position, ...], began_s: float) -> None:
        before = self.positions
        since_s = began_s - _SETTLED_S
        later = {key: heard for key, heard in self._heard.items() if heard.came_s >= since_s}
        if later:
            positions = self._with_events(positions, later)
        is_new = before is not positions and before != positions
        if is_new and self._has_events and self.answers:
            self._compare(before, positions)
        self.positions = positions
        self._note(getattr(self._source, "out_of_date", None))
        self.answers += 1
        self._answered_s = self._clock.monotonic()
        self._covered_ns = self._clock.utc_ns()
        self._report_differences(self._answered_s)
        if is_new:
            _log_problems(before, positions)
        if is_new or self.answers == 1:
            self._notify()

    def _with_events(
        self, answer: tuple[Position, ...], later: dict[str, _Heard]
    ) -> tuple[Position, ...]:
        """The answer, but for symbols whose last event it may not have."""
        rows, known = _by_key(answer, later), _by_key(self.positions, later)
        kept: dict[str, list[Position]] = {}
        for key, heard in later.items():
            if _quantity(rows[key]) == heard.quantity:
                continue
            self.want()
            if self.answers:
                if _quantity(known[key]) == heard.quantity:  # the event was applied
                    kept[key] = known[key]
            elif len(rows[key]) <= 1:
                row = rows[key][0] if rows[key] else None
                after = position_after(row, heard.update)
                kept[key] = [] if after is None else [after]
        if not kept:
            return answer
        merged: list[Position] = []
        for each in answer:
            key = each.priced_by
            if key not in kept:
                merged.append(each)
            else:
                merged += kept[key]
                kept[key] = []
        for left in kept.values():
            merged += left
        return tuple(merged)

    def _compare(self, before: Sequence[Position], now: Sequence[Position]) -> None:
        """Note the symbols whose quantity an answer has changed, without an event."""
        held, found = _quantities(before), _quantities(now)
        now_s = self._clock.monotonic()
        for key in held.keys() | found.keys():
            was, is_now = held.get(key, ZERO), found.get(key, ZERO)
            if was == is_now:
                continue
            first = self._unexplained.pop(key, None) or _Difference(key, was, is_now, now_s)
            if first.held != is_now:
                self._unexplained[key] = attrs.evolve(first, found=is_now)

    def _explain(self, key: str, update: TradeUpdate) -> None:
        """Forget a difference if the event explains it."""
        difference = self._unexplained.get(key)
        if difference is not None and difference.found == update.position_qty:
            del self._unexplained[key]

    def _report_differences(self, now_s: float) -> None:
        """Report what no event has explained in time, and forget what was shown for long."""
        for key, difference in list(self._unexplained.items()):
            if now_s >= difference.at_s + _GRACE_S:
                del self._unexplained[key]
                self.differed += 1
                self._shown.pop(key, None)
                self._shown[key] = attrs.evolve(difference, at_s=now_s)
                _log.warning(
                    "positions_differed",
                    symbol=difference.symbol,
                    events=plain(difference.held),
                    source=plain(difference.found),
                )
        for key, difference in list(self._shown.items()):
            if now_s >= difference.at_s + SHOWN_S:
                del self._shown[key]

    def _notify(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = anyio.Event()

    def _note(self, error: str | None) -> None:
        """Store why the last request failed, or None; log it if the reason has changed."""
        reason = None if error is None else masked(error)
        if reason is not None and reason != self.last_error:
            _log.warning("positions_failed", source=self.address, reason=reason)
        elif reason is None and self.last_error is not None:
            _log.info("positions_are_back", source=self.address)
        self.last_error = reason


@attrs.frozen
class _Heard:
    """The newest event of a symbol.

    Attributes:
        update: The event.
        came_s: When it came, monotonic seconds.
        identities: Those of all events with its time.
    """

    update: TradeUpdate
    came_s: float
    identities: frozenset[tuple[object, ...]]

    @classmethod
    def after(cls, seen: _Heard | None, update: TradeUpdate, now_s: float) -> _Heard:
        same = seen is not None and seen.update.timestamp_ns == update.timestamp_ns
        before = seen.identities if seen is not None and same else frozenset()
        return cls(update, now_s, before | {update.identity})

    @property
    def quantity(self) -> Decimal:
        return self.update.position_qty or ZERO


@attrs.frozen
class _Difference:
    """A quantity that an answer of the source has and the events had not.

    Attributes:
        symbol: That of the feed.
        held: By the events.
        found: By the answer.
        at_s: When it was found, or first shown; monotonic seconds.
    """

    symbol: str
    held: Decimal
    found: Decimal
    at_s: float

    def __str__(self) -> str:
        return (
            f"the position in {self.symbol} was {plain(self.held)} by its fills and is "
            f"{plain(self.found)} by its source, which counts"
        )


def _follows(before: Position | None, update: TradeUpdate) -> bool:
    """Whether the event is the next one after the position."""
    change = update.change
    if change is None:
        return False
    qty = ZERO if before is None else before.qty or ZERO
    return EXACT.add(qty, change) == update.position_qty


def _quantity(rows: Iterable[Position]) -> Decimal:
    total = ZERO
    for each in rows:
        if each.qty is not None and sums_up(each.qty):
            total = EXACT.add(total, each.qty)
    return total


def _quantities(positions: Iterable[Position]) -> dict[str, Decimal]:
    """The quantity of each symbol of the feed."""
    found: dict[str, Decimal] = {}
    for each in positions:
        if each.problem is None and each.qty is not None:
            found[each.priced_by] = EXACT.add(found.get(each.priced_by, ZERO), each.qty)
    return found


def _by_key(positions: Iterable[Position], keys: Collection[str]) -> dict[str, list[Position]]:
    """The rows of these symbols of the feed."""
    found: dict[str, list[Position]] = {key: [] for key in keys}
    for each in positions:
        if each.priced_by in found:
            found[each.priced_by].append(each)
    return found


def _log_problems(before: Sequence[Position], now: Sequence[Position]) -> None:
    """Log each unusable row once, not at each poll."""
    known = _problems(before)
    for (symbol, problem), rows in _problems(now).items():
        if rows > known[symbol, problem]:
            _log.warning("position_not_followed", symbol=symbol, reason=problem, rows=rows)


def _problems(positions: Sequence[Position]) -> Counter[tuple[str, str]]:
    """Count the rows of each symbol and problem; unreadable ones share a symbol."""
    return Counter((each.symbol, each.problem) for each in positions if each.problem is not None)
