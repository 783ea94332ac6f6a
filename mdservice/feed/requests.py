"""Requests to change the subscriptions, served one after the other while the feed runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import anyio
import attrs

from mdservice.errors import FeedUnavailable, SubscriptionRefused
from mdservice.feed.session import Session
from mdservice.feed.subscriptions import SubscriptionSet
from mdservice.model.feeds import Topic, symbols_of
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
    """Applies each request to the wanted topics and to the open session.

    Without an open session, a request only changes the set, and the answer is ``pending``. The next
    connection subscribes the whole set.

    Args:
        subscriptions: The wanted topics.
        inbox: The requests.
        session: Returns the open session, or None.
        changed: Called with the session after topics were added.
        room: Called after topics were unsubscribed, or after only the wanted topics have changed.
        noted: Called when the wanted topics have changed.
        opened: Waits until a connection that opens on demand is open, or has failed to open.
    """

    def __init__(
        self,
        subscriptions: SubscriptionSet,
        inbox: Inbox[Command],
        session: Callable[[], Session | None],
        changed: Callable[[Session], Awaitable[None]],
        room: Callable[[], None],
        noted: Callable[[], None],
        opened: Callable[[], Awaitable[None]],
    ) -> None:
        self._subscriptions = subscriptions
        self._inbox = inbox
        self._session = session
        self._changed = changed
        self._room = room
        self._noted = noted
        self._opened = opened

    async def serve(self) -> None:
        """Answer requests until cancelled."""
        try:
            await self._serve()
        finally:  # the next connection, if any, subscribes the whole set
            for command in self._inbox.take_waiting():
                self._note(command)
                command.answer.give(SubscriptionResult("pending", command.topics))

    async def _serve(self) -> None:
        async for command in self._inbox:
            self._inbox.rest()  # each answer of the feed has a time limit, so this is no stall
            try:
                command.answer.give(await self._answer(command))
            except SubscriptionRefused as exc:
                command.answer.fail(exc)
            finally:  # cancelled: the set has changed, so the next connection subscribes it
                command.answer.give(SubscriptionResult("pending", command.topics))

    def _note(self, command: Command) -> list[Topic]:
        """Apply the request to the set; return the topics that were added or removed."""
        self._noted()
        if isinstance(command, Subscribe):
            return self._subscriptions.add(command.topics, command.source)
        if isinstance(command, Follow):
            return self._subscriptions.follow(command.topics, command.source)
        return self._subscriptions.remove(command.topics, command.sources)

    async def _answer(self, command: Command) -> SubscriptionResult:
        try:
            if isinstance(command, Subscribe):
                return SubscriptionResult(await self._subscribe(command), command.topics)
            if isinstance(command, Follow):
                return SubscriptionResult(await self._follow(command), command.topics)
            return SubscriptionResult(await self._unsubscribe(command), command.topics)
        except FeedUnavailable:
            return SubscriptionResult("pending", command.topics)

    async def _subscribe(self, command: Subscribe) -> Outcome:
        added = self._note(command)
        session = await self._free_session()
        if session is None:
            return "pending"
        refused = await session.subscribe(command.topics)
        if refused is not None:
            self._subscriptions.remove(added, [command.source])
            raise SubscriptionRefused(
                refused.reason, code=refused.code, symbols=symbols_of(command.topics)
            )
        for topic in command.topics:
            session.given(topic)
        await self._changed(session)
        return "subscribed"

    async def _follow(self, command: Follow) -> Outcome:
        gone = self._note(command)
        session = await self._free_session()
        if session is None:
            return "pending"
        await session.unsubscribe(gone)
        session.forget_unwanted(self._subscriptions)
        refused = await session.subscribe_what_fits(session.missing(command.topics))
        if refused is not None:
            raise SubscriptionRefused(
                refused.reason, code=refused.code, symbols=symbols_of(command.topics)
            )
        await self._changed(session)
        self._room()  # ask again for unfulfilled topics, the most important first
        return "subscribed"

    async def _unsubscribe(self, command: Unsubscribe) -> Outcome:
        gone = self._note(command)
        session = await self._free_session()
        if session is None:
            return "pending" if gone else "unsubscribed"
        await session.unsubscribe(gone)
        session.forget_unwanted(self._subscriptions)
        self._room()  # also without a removal: a less important topic may be replaced
        return "unsubscribed"

    async def _free_session(self) -> Session | None:
        """The open session once nothing else is being asked of it; None if that takes long."""
        with anyio.move_on_after(_PATIENCE_S):
            await self._opened()
            session = self._session()
            if session is None:
                return None
            await session.free()
            return session
        self._room()  # the set has the topics; they are subscribed later
        return None


@attrs.frozen
class SubscriptionResult:
    """What became of a request.

    Attributes:
        status: ``subscribed`` or ``unsubscribed`` where it is done, ``pending`` where it
            will be once the feed is back.
        topics: What was asked for.
        added: Those that the source had not wanted before.
    """

    status: Outcome
    topics: tuple[Topic, ...]
    added: tuple[Topic, ...] = ()

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that were asked for."""
        return symbols_of(self.topics)


@attrs.frozen
class Subscribe:
    """A source wants topics: all of them, or none where the feed refuses."""

    topics: tuple[Topic, ...]
    source: str
    answer: Answer[SubscriptionResult] = attrs.field(factory=Answer, eq=False)


@attrs.frozen
class Unsubscribe:
    """Sources that no longer want topics; a topic that no other source wants is dropped."""

    topics: tuple[Topic, ...]
    sources: tuple[str, ...]
    answer: Answer[SubscriptionResult] = attrs.field(factory=Answer, eq=False)


@attrs.frozen
class Follow:
    """A source wants exactly these topics, the most important first; as many as the feed gives.

    It is answered once those that are new have been asked for. What the feed does not give is
    left out, and asked for again while it is wanted.
    """

    topics: tuple[Topic, ...]
    source: str
    answer: Answer[SubscriptionResult] = attrs.field(factory=Answer, eq=False)


Command = Subscribe | Unsubscribe | Follow
