"""One open connection: all that is read is handed on, and one subscription change at a time.

Alpaca answers a change with the whole state and a refusal without naming what it refuses,
so requests never overlap: each waits for its answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import anyio
import attrs

from mdservice.errors import FeedUnavailable
from mdservice.feed.alpaca.codec import Codec, Control, Decoded, Followed
from mdservice.feed.alpaca.error_codes import Reaction, reaction_to_code, refusal
from mdservice.feed.alpaca.messages import ErrorMessage, Subscription
from mdservice.feed.driver import Link
from mdservice.feed.subscriptions import SubscriptionSet, chunks
from mdservice.model.quote import Quote
from mdservice.observability.logging import get_logger
from mdservice.runtime.actor import Answer

__all__ = ["ACK_TIMEOUT_S", "CHUNK_SIZE", "NOT_ACKNOWLEDGED", "Refused", "Session", "SessionEvents"]

_log = get_logger(__name__)

CHUNK_SIZE = 200
"""Symbols in one request; a message of this many stays below every known limit."""
ACK_TIMEOUT_S = 5.0
"""How long an answer to a request may take before the connection counts as broken."""

NOT_ACKNOWLEDGED = 0
"""In place of Alpaca's code, where it sent none and left symbols out."""

_INVALID_SYNTAX = 400
_SYMBOL_LIMIT = 405
_MOST_NAMED = 5
_NOT_FIRST = (_INVALID_SYNTAX, _SYMBOL_LIMIT)


@attrs.frozen
class Refused:
    """The feed refused a request; what was subscribed before still is."""

    code: int
    reason: str
    words: str = ""
    """The feed's own words, where it had any."""


def _halves(symbols: Sequence[str]) -> list[list[str]]:
    middle = len(symbols) // 2
    return [list(symbols[:middle]), list(symbols[middle:])]


class SessionEvents(Protocol):
    """What a session tells its owner."""

    def decoded(self, decoded: Decoded) -> None:
        """Something was read; called before its quotes are handed on."""
        ...


class Session:
    """The subscriptions and the reading of one link.

    Args:
        link: Open and authenticated.
        utc_ns: The clock that stamps what is read.
        events: Told of everything that is read.
        hand_on: Takes the quotes of one read; may wait, which holds the reading back.
        under_every: See :class:`Followed`.
    """

    def __init__(
        self,
        link: Link,
        utc_ns: Callable[[], int],
        events: SessionEvents,
        hand_on: Callable[[Sequence[Quote]], Awaitable[None]],
        under_every: set[str] | None = None,
    ) -> None:
        self._link = link
        self._followed = Followed(under_every)
        self._codec = Codec(link.encoding, self._followed)
        self._utc_ns = utc_ns
        self._events = events
        self._hand_on = hand_on
        self._one_request = anyio.Lock()
        self._request: Answer[Subscription | Refused] | None = None
        self._reading = anyio.CancelScope()
        self._ended: FeedUnavailable | None = None
        self.acknowledged: frozenset[str] = frozenset()
        self.left_out: dict[str, str] = {}
        self._words: dict[str, str] = {}
        """Of symbols that are left out, the feed's own words."""
        self._not_known: set[str] = set()
        """Those that the feed does not understand, whatever room there is."""
        self.over_limit: set[str] = set()
        """Those that are left out because the feed gives no more symbols."""

    # Reading

    async def read(self) -> None:
        """Read until the connection ends.

        Raises:
            FeedUnavailable: It ended, or an error message asks for a new one.
            FeedRefused: An error message that is fatal, or that asks to wait for the slot.
        """
        try:
            with self._reading:
                while True:
                    frames = await self._link.receive()
                    decoded = self._codec.decode(frames, self._utc_ns())
                    self._events.decoded(decoded)
                    if decoded.quotes:  # first, since an error among the controls ends it
                        await self._hand_on(decoded.quotes)
                    for control in decoded.controls:
                        self._take_control(control)
        finally:
            self._end(FeedUnavailable("the connection ended before the feed had answered"))
        raise self._ended or FeedUnavailable("the connection ended")

    def _end(self, reason: FeedUnavailable) -> None:
        """No more answers will come; the first reason counts."""
        self._ended = self._ended or reason
        self._reading.cancel()
        if self._request is not None:
            self._request.fail(self._ended)

    def _take_control(self, control: Control) -> None:
        if isinstance(control, Subscription):
            self.acknowledged = frozenset(control.quotes or ())
            if self._request is not None:
                self._request.give(control)
        elif isinstance(control, ErrorMessage):
            self._take_error(control)

    def _take_error(self, error: ErrorMessage) -> None:
        reaction = reaction_to_code(error.code)
        if reaction is Reaction.IGNORE:
            return
        if reaction is Reaction.REFUSE_REQUEST:
            if self._request is not None:
                self._request.give(
                    Refused(error.code, str(refusal(error.code, error.msg)), error.msg)
                )
            else:
                _log.warning("feed_error_ignored", code=error.code, reason=error.msg)
            return
        if reaction is Reaction.RECONNECT:
            raise FeedUnavailable(str(refusal(error.code, error.msg)))
        raise refusal(error.code, error.msg)

    # Requests

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """The wanted symbols that are neither acknowledged nor left out."""
        return [s for s in wanted if s not in self.acknowledged and s not in self.left_out]

    def forget_unwanted(self, wanted: SubscriptionSet) -> None:
        """Symbols that nobody wants any more are not left out."""
        self.left_out = {s: reason for s, reason in self.left_out.items() if s in wanted}
        self.over_limit &= self.left_out.keys()
        self._words = {s: words for s, words in self._words.items() if s in self.left_out}

    def why_left_out(self) -> dict[str, str]:
        """The symbols that are left out, with the feed's own words where it had any."""
        return {s: self._words.get(s) or reason for s, reason in self.left_out.items()}

    def _leave_out(self, symbol: str, reason: str, words: str = "") -> None:
        """For another reason than the limit: no room would help."""
        self.left_out[symbol] = reason
        self._words[symbol] = words
        self.over_limit.discard(symbol)

    def given(self, symbol: str) -> None:
        """It is left out no longer."""
        self.left_out.pop(symbol, None)
        self.over_limit.discard(symbol)

    async def free(self) -> None:
        """Wait until no request is under way."""
        async with self._one_request:
            pass

    async def subscribe(self, symbols: Sequence[str]) -> Refused | None:
        """Subscribe all of the symbols, or none.

        Returns:
            The refusal, after which the set is what it was before.

        Raises:
            FeedUnavailable: The connection ended, or did not answer in time.
        """
        async with self._one_request:
            before = self.acknowledged
            refused = await self._subscribe_all(symbols)
            if refused is not None:
                await self._remove(self.acknowledged - before)
            return refused

    async def _subscribe_all(self, symbols: Sequence[str]) -> Refused | None:
        """Ask for the symbols, and once more for those that were silently left out."""
        for _ in range(2):
            for chunk in chunks([s for s in symbols if s not in self.acknowledged], CHUNK_SIZE):
                answer = await self._ask("subscribe", chunk)
                if isinstance(answer, Refused):
                    return await self._naming_the_cause(answer, chunk)
        missing = [s for s in symbols if s not in self.acknowledged]
        if missing:
            return Refused(
                NOT_ACKNOWLEDGED, f"the feed did not acknowledge {', '.join(missing[:10])}"
            )
        return None

    async def _naming_the_cause(self, refused: Refused, chunk: Sequence[str]) -> Refused:
        """A refusal for syntax does not say of which symbol: halve until they are found."""
        if refused.code != _INVALID_SYNTAX:
            return refused
        found = list(chunk) if len(chunk) == 1 else []
        todo = _halves(chunk) if len(chunk) > 1 else []
        while todo and len(found) < _MOST_NAMED:
            some = todo.pop(0)
            answer = await self._ask("subscribe", some)
            if isinstance(answer, Refused) and len(some) > 1:
                todo[:0] = _halves(some)
            elif isinstance(answer, Refused):
                found += some
        return Refused(refused.code, f"{refused.reason} ({', '.join(found)})") if found else refused

    async def unsubscribe(self, symbols: Iterable[str]) -> None:
        """Unsubscribe those of the symbols that are subscribed.

        Raises:
            FeedUnavailable: The connection ended, or did not answer in time.
        """
        async with self._one_request:
            await self._remove(self.acknowledged.intersection(symbols))

    async def subscribe_what_fits(self, symbols: Sequence[str]) -> Refused | None:
        """Subscribe as many of the symbols as the feed gives; name the others as left out.

        A refused chunk is halved until the symbols in the way are found: at the symbol limit
        (405) the rest is left out, a symbol that is not understood (400) alone is.

        Returns:
            A refusal that is neither of these.

        Raises:
            FeedUnavailable: The connection ended, or did not answer in time.
        """
        async with self._one_request:
            todo = list(chunks([s for s in symbols if s not in self.acknowledged], CHUNK_SIZE))
            while todo:
                chunk = todo.pop(0)
                answer = await self._ask("subscribe", chunk)
                if isinstance(answer, Refused):
                    if answer.code not in _NOT_FIRST:
                        return answer
                    if len(chunk) > 1:
                        todo[:0] = _halves(chunk)
                    elif answer.code == _SYMBOL_LIMIT:
                        rest = [chunk[0], *(symbol for later in todo for symbol in later)]
                        self.left_out |= dict.fromkeys(rest, answer.reason)
                        self._words |= dict.fromkeys(rest, answer.words)
                        self.over_limit |= set(rest) - self._not_known
                        return None
                    else:
                        self._not_known.add(chunk[0])
                        self._leave_out(chunk[0], answer.reason, answer.words)
                else:
                    await self._ask_again_for(set(chunk) - self.acknowledged)
                    for symbol in self.acknowledged.intersection(chunk):
                        self.given(symbol)
        return None

    async def _ask_again_for(self, missing: set[str]) -> None:
        """A large subscription can be acknowledged in part, without an error."""
        if not missing:
            return
        answer = await self._ask("subscribe", sorted(missing))
        for symbol in missing - self.acknowledged:
            if isinstance(answer, Refused):
                self._leave_out(symbol, answer.reason, answer.words)
            else:
                self._leave_out(symbol, "not acknowledged")

    async def _remove(self, symbols: Iterable[str]) -> None:
        for chunk in chunks(sorted(symbols), CHUNK_SIZE):
            await self._ask("unsubscribe", chunk)

    async def _ask(self, action: str, symbols: Sequence[str]) -> Subscription | Refused:
        if self._ended is not None:
            raise self._ended
        self._request = Answer()
        if action == "subscribe":
            self._followed.ask(symbols)
        try:
            with anyio.fail_after(ACK_TIMEOUT_S):
                await self._link.send({"action": action, "quotes": list(symbols)})
                answer = await self._request.wait()
        except TimeoutError as exc:
            # A late answer would be taken for that of the next request: start anew.
            self._end(
                FeedUnavailable(f"the feed did not answer to {action} within {ACK_TIMEOUT_S:g} s")
            )
            raise self._ended or exc from exc
        else:
            if action == "unsubscribe" and isinstance(answer, Subscription):
                self._followed.give_up(symbols)
            return answer
        finally:
            self._request = None
            self._followed.answered()
