"""What can go wrong on purpose, when, and what it does to a connection or a REST answer."""

from __future__ import annotations

import http
import random
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import attrs
from attrs import validators

from mdservice.simulator.feeds import StreamName
from mdservice.simulator.http import RECENT_SIP, RECENT_SIP_MESSAGE
from mdservice.simulator.session import Silence, When
from mdservice.simulator.wire import OutFrame

__all__ = [
    "CancelTrade",
    "CorrectTrade",
    "CutRest",
    "DataFault",
    "DataFaults",
    "Drop",
    "Duplicate",
    "Fault",
    "Freeze",
    "Garble",
    "GarbleRest",
    "Halt",
    "Lose",
    "MarketEvent",
    "Mute",
    "Planned",
    "Refuse",
    "RefuseRest",
    "Reorder",
    "RestFault",
    "RestFaults",
    "SendError",
    "Slow",
    "SlowRest",
    "Spoil",
    "seeded_faults",
]


_FOREVER = float("inf")
_MOST_PLANNED = 1_000


@attrs.frozen
class Drop:
    """End open connections.

    ``reset`` cuts the line at once, with what was not yet sent; ``half-close`` ends the
    server's direction without a closing handshake, after what was to be sent; ``close`` is
    a closing handshake with ``code``.
    """

    how: Literal["reset", "half-close", "close"] = "reset"
    code: int = 1001


@attrs.frozen
class Refuse:
    """Answer the next ``times`` of ``when`` with a code, or not at all.

    The code is an HTTP status for ``upgrade``; no answer at all is
    :data:`~mdservice.simulator.SILENCE`.
    """

    answer: int | Silence
    when: When = "auth"
    times: int = 1


@attrs.frozen
class SendError:
    """Send an error message that answers no request."""

    code: int


@attrs.frozen
class Mute:
    """Data stops, for ``for_s`` seconds or until resumed; the socket stays open and answers."""

    for_s: float = _FOREVER


@attrs.frozen
class Freeze:
    """Nothing is sent, not even a pong; frames wait in the send buffer."""

    for_s: float = _FOREVER


@attrs.frozen
class Slow:
    """Every frame takes ``delay_s`` longer."""

    delay_s: float = 0.1
    for_s: float = _FOREVER


@attrs.frozen
class Garble:
    """The next data frames cannot be decoded."""

    frames: int = 1


@attrs.frozen
class Spoil:
    """The next data frames hold one message that breaks the schema, among the good ones."""

    frames: int = 1


@attrs.frozen
class Duplicate:
    """The next data frames are sent twice."""

    frames: int = 1


@attrs.frozen
class Lose:
    """The next data frames are not sent."""

    frames: int = 1


@attrs.frozen
class Reorder:
    """The next data frames hold their records in the reverse order.

    A frame of one record comes after the one that follows it.
    """

    frames: int = 1


@attrs.frozen
class Halt:
    """Trading in a stock is halted, for ``for_s`` seconds; not if it is halted already."""

    symbol: str
    for_s: float = 20.0


@attrs.frozen
class CorrectTrade:
    """The latest trade of a stock is corrected; nothing happens where there is no trade."""

    symbol: str


@attrs.frozen
class CancelTrade:
    """The latest trade of a stock is canceled; nothing happens where there is no trade."""

    symbol: str


def _known_status(_: Any, __: Any, status: int) -> None:
    http.HTTPStatus(status)


@attrs.frozen
class RefuseRest:
    """Answer with this HTTP status, Alpaca's code and text; 0 leaves the code out.

    As in all of these: ``path`` is that of the requests meant, None for any, and ``times``
    how many of them. With ``symbol``, only requests that name it are refused.
    """

    status: int = attrs.field(default=403, validator=_known_status)
    code: int = RECENT_SIP
    message: str = RECENT_SIP_MESSAGE
    path: str | None = None
    times: int = attrs.field(default=1, validator=validators.ge(1))
    symbol: str | None = None

    def means(self, symbols: str) -> bool:
        """Whether a request for these symbols, separated by commas, is refused."""
        return self.symbol is None or self.symbol in symbols.split(",")


@attrs.frozen
class SlowRest:
    """Answer so many seconds later; with ``inf`` never."""

    delay_s: float = attrs.field(default=1.0, validator=validators.ge(0))
    path: str | None = None
    times: int = attrs.field(default=1, validator=validators.ge(1))


@attrs.frozen
class CutRest:
    """End the connection in the middle of the answer; or, where it ``stalls``, say no more."""

    path: str | None = None
    times: int = attrs.field(default=1, validator=validators.ge(1))
    stalls: bool = False


@attrs.frozen
class GarbleRest:
    """Answer with JSON that cannot be read."""

    path: str | None = None
    times: int = attrs.field(default=1, validator=validators.ge(1))


RestFault = RefuseRest | SlowRest | CutRest | GarbleRest
"""What is done to the answer of a REST request."""
DataFault = Mute | Freeze | Slow | Garble | Spoil | Duplicate | Lose | Reorder
"""What is done to the data of a connection that stays open."""
MarketEvent = Halt | CorrectTrade | CancelTrade
"""What happens in the market of stocks, whoever is connected."""
Fault = Drop | Refuse | SendError | DataFault | RestFault | MarketEvent

_Kind = TypeVar("_Kind", bound=RestFault)
_Record = TypeVar("_Record")


@attrs.frozen
class Planned:
    """A line of the script: a fault, and when.

    Attributes:
        fault: What happens, to every connection that is open then, or to the REST requests
            that come next.
        after_s: Seconds after the simulator was opened; or
        after_quotes: once the market of stocks has made so many quotes.
        feed: Only for connections of this stream; None for all of market data. REST requests are
            named by the fault's own ``path``.
    """

    fault: Fault
    after_s: float | None = None
    after_quotes: int | None = None
    feed: StreamName | None = None

    def __attrs_post_init__(self) -> None:
        """Check that exactly one moment is given."""
        if (self.after_s is None) == (self.after_quotes is None):
            raise ValueError("a planned fault needs after_s or after_quotes, and not both")


_DRAWN: tuple[Fault, ...] = (
    Drop("reset"),
    Drop("half-close"),
    Drop("close"),
    Mute(1.0),
    Freeze(1.0),
    Slow(0.05, 1.0),
    Garble(),
    Spoil(),
    Duplicate(),
    Reorder(),
    SendError(500),
)


def seeded_faults(
    seed: int, *, count: int, over_s: float, kinds: Sequence[Fault] = _DRAWN
) -> tuple[Planned, ...]:
    """A script drawn from a seed: ``count`` faults of these kinds within ``over_s`` seconds."""
    draw = random.Random(seed)  # noqa: S311 - reproducible, no secret
    moments = sorted(draw.uniform(0, over_s) for _ in range(count))
    return tuple(Planned(draw.choice(kinds), after_s=moment) for moment in moments)


@attrs.define
class DataFaults:
    """The data faults in force on one connection. Pure: the time is an argument."""

    _muted_until_s: float = 0.0
    _frozen_until_s: float = 0.0
    _slow_until_s: float = 0.0
    _delay_s: float = 0.0
    _garble: int = 0
    _spoil: int = 0
    _duplicate: int = 0
    _lose: int = 0
    _reorder: int = 0
    _held: dict[str, list[Any]] = attrs.field(factory=dict)
    """Records that wait for the next frame of their channel."""

    def add(self, fault: DataFault, now_s: float) -> None:
        """Put a fault into force."""
        match fault:
            case Mute(for_s):
                self._muted_until_s = now_s + for_s
            case Freeze(for_s):
                self._frozen_until_s = now_s + for_s
            case Slow(delay_s, for_s):
                self._delay_s, self._slow_until_s = delay_s, now_s + for_s
            case Garble(frames):
                self._garble += frames
            case Spoil(frames):
                self._spoil += frames
            case Duplicate(frames):
                self._duplicate += frames
            case Lose(frames):
                self._lose += frames
            case Reorder(frames):
                self._reorder += frames

    def muted(self, now_s: float) -> bool:
        """Whether data is to be left out."""
        return now_s < self._muted_until_s

    def frozen_for(self, now_s: float) -> float:
        """Seconds for which nothing may be sent; 0 or less when something may."""
        return self._frozen_until_s - now_s

    def delay_s(self, now_s: float) -> float:
        """How long to wait before the next frame."""
        return self._delay_s if now_s < self._slow_until_s else 0.0

    def reorder(self, channel: str, records: list[_Record]) -> list[_Record]:
        """The records of the channel's next frame in their new order; empty while they wait."""
        held = self._held.pop(channel, None)
        if held:
            return records + held
        if self._reorder:
            self._reorder -= 1
            if len(records) == 1:
                self._held[channel] = records
                return []
            return records[::-1]
        return records

    def spoil(self) -> bool:
        """Whether the next frame is to hold a broken message."""
        if not self._spoil:
            return False
        self._spoil -= 1
        return True

    def copies(self, frame: OutFrame) -> list[OutFrame]:
        """What is sent in the place of this frame."""
        if self._lose:
            self._lose -= 1
            return []
        if self._garble:
            self._garble -= 1
            # Half of an array is still valid UTF-8 as all of it is ASCII, and no array.
            frame = OutFrame(frame.data[: max(1, len(frame.data) // 2)], frame.text)
        if self._duplicate:
            self._duplicate -= 1
            return [frame, frame]
        return [frame]


@attrs.define
class _Planned:
    fault: RestFault
    left: int


class RestFaults:
    """The REST faults that are still to come, in the order planned."""

    def __init__(self) -> None:
        self._planned: list[_Planned] = []

    def plan(self, fault: RestFault) -> None:
        """Put a fault into force for the next requests that it means.

        Raises:
            ValueError: A thousand are planned already.
        """
        if len(self._planned) >= _MOST_PLANNED:
            raise ValueError(f"{_MOST_PLANNED} REST faults are planned already")
        self._planned.append(_Planned(fault, fault.times))

    def take(self, kind: type[_Kind], path: str, symbols: str = "") -> _Kind | None:
        """The fault of this kind for this request, and use it up; None where there is none."""
        for planned in self._planned:
            fault = planned.fault
            if isinstance(fault, RefuseRest) and not fault.means(symbols):
                continue
            if isinstance(fault, kind) and fault.path in {None, path}:
                planned.left -= 1
                if not planned.left:
                    self._planned.remove(planned)
                return fault
        return None

    def clear(self) -> None:
        """Forget all planned faults."""
        self._planned.clear()
