"""Requests to change the subscriptions, served one after the other while the feed runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Literal

import anyio
import attrs

from mdservice.errors import FeedUnavailable, SubscriptionRefused
from mdservice.feed.session import Session
from mdservice.feed.subscriptions import SubscriptionSet
from mdservice.runtime.actor import Answer, Inbox

__all__ = [
    "Command",
    "Follow",
    "Outcome",
    "Subscribe",
    "SubscriptionRequests",
    "SubscriptionResult",
    "Unsubscribe",
]

Outcome = Literal["subscribed", "unsubscribed", "pending"]

_PATIENCE_S = 4.0
"""How long a request waits for earlier ones. After that the answer is ``pending``."""


class SubscriptionRequests:
    """Applies each request to the set of wanted symbols and to the open session.

    Without an open session, a request only changes the set, and the answer is ``pending``. The next
    connection subscribes the whole set.

    Args:
        book: The set of wanted symbols.
        inbox: The requests.
        session: Returns the open session, or None.
        changed: Called with the subscribed and the unfulfilled symbols after symbols were added.
        room: Called after symbols were unsubscribed, or after only the set has changed.
    """

    def __init__(
        self,
        book: SubscriptionSet,
        inbox: Inbox[Command],
        session: Callable[[], Session | None],
        changed: Callable[[Collection[str], Collection[str]], Awaitable[None]],
        room: Callable[[], None],
    ) -> None:
        self._book = book
        self._inbox = inbox
        self._session = session
        self._changed = changed
        self._room = room

    async def serve(self) -> None:
        """Answer requests until cancelled."""
        try:
            await self._serve()
        finally:  # the next connection, if any, subscribes the whole set
            for command in self._inbox.take_waiting():
                self._note(command)
                command.answer.give(SubscriptionResult("pending", command.symbols))

    async def _serve(self) -> None:
        async for command in self._inbox:
            self._inbox.rest()  # each answer of the feed has a time limit, so this is no stall
            try:
                command.answer.give(await self._answer(command))
            except SubscriptionRefused as exc:
                command.answer.fail(exc)
            finally:  # cancelled: the set has changed, so the next connection subscribes it
                command.answer.give(SubscriptionResult("pending", command.symbols))

    def _note(self, command: Command) -> list[str]:
        """Apply the request to the set; return the symbols that were added or removed."""
        if isinstance(command, Subscribe):
            return self._book.add(command.symbols, command.source)
        if isinstance(command, Follow):
            return self._book.follow(command.symbols, command.source)
        return self._book.remove(command.symbols, command.sources)

    async def _answer(self, command: Command) -> SubscriptionResult:
        try:
            if isinstance(command, Subscribe):
                return SubscriptionResult(await self._subscribe(command), command.symbols)
            if isinstance(command, Follow):
                return SubscriptionResult(await self._follow(command), command.symbols)
            return SubscriptionResult(await self._unsubscribe(command), command.symbols)
        except FeedUnavailable:
            return SubscriptionResult("pending", command.symbols)

    async def _subscribe(self, command: Subscribe) -> Outcome:
        added = self._note(command)
        session = await self._free_session()
        if session is None:
            return "pending"
        refused = await session.subscribe(command.symbols)
        if refused is not None:
            self._book.remove(added, [command.source])
            raise SubscriptionRefused(refused.reason, code=refused.code, symbols=command.symbols)
        for symbol in command.symbols:
            session.given(symbol)
        await self._changed(session.acknowledged, session.left_out)
        return "subscribed"

    async def _follow(self, command: Follow) -> Outcome:
        gone = self._note(command)
        session = await self._free_session()
        if session is None:
            return "pending"
        await session.unsubscribe(gone)
        session.forget_unwanted(self._book)
        refused = await session.subscribe_what_fits(session.missing(command.symbols))
        if refused is not None:
            raise SubscriptionRefused(refused.reason, code=refused.code, symbols=command.symbols)
        await self._changed(session.acknowledged, session.left_out)
        self._room()  # ask again for unfulfilled symbols, the most important first
        return "subscribed"

    async def _unsubscribe(self, command: Unsubscribe) -> Outcome:
        gone = self._note(command)
        session = await self._free_session()
        if session is None:
            return "pending" if gone else "unsubscribed"
        await session.unsubscribe(gone)
        session.forget_unwanted(self._book)
        self._room()  # also without a removal: a less important symbol may be replaced
        return "unsubscribed"

    async def _free_session(self) -> Session | None:
        """The open session once nothing else is being asked of it; None if that takes long."""
        session = self._session()
        if session is None:
            return None
        with anyio.move_on_after(_PATIENCE_S):
            await session.free()
            return session
        self._room()  # the set has the symbols; they are subscribed later
        return None


@attrs.frozen
class SubscriptionResult:
    """What became of a request.

    Attributes:
        status: ``subscribed`` or ``unsubscribed`` where it is done, ``pending`` where it
            will be once the feed is back.
        symbols: The symbols that were asked for.
    """

    status: Outcome
    symbols: tuple[str, ...]


@attrs.frozen
class Subscribe:
    """A source wants symbols: all of them, or none where the feed refuses."""

    symbols: tuple[str, ...]
    source: str
    answer: Answer[SubscriptionResult] = attrs.field(factory=Answer, eq=False)


@attrs.frozen
class Unsubscribe:
    """Sources that no longer want symbols; a symbol that no other source wants is dropped."""

    symbols: tuple[str, ...]
    sources: tuple[str, ...]
    answer: Answer[SubscriptionResult] = attrs.field(factory=Answer, eq=False)


@attrs.frozen
class Follow:
    """A source wants exactly these symbols, the most important first; as many as the feed gives.

    It is answered once those that are new have been asked for. What the feed does not give is
    left out, and asked for again while it is wanted.
    """

    symbols: tuple[str, ...]
    source: str
    answer: Answer[SubscriptionResult] = attrs.field(factory=Answer, eq=False)


Command = Subscribe | Unsubscribe | Follow
