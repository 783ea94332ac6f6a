"""Requests again the wanted topics that the feed does not deliver: *unfulfilled* topics.

At the symbol limit it also unsubscribes less important topics of open positions in favour of more
important ones, and topics that are no longer wanted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

import anyio

from mdservice.feed.session import Session
from mdservice.feed.subscriptions import SubscriptionSet
from mdservice.model.feeds import Topic

__all__ = ["AGAIN_FIRST_S", "AGAIN_LIMIT_S", "UnfulfilledTopics"]

AGAIN_FIRST_S, AGAIN_LIMIT_S = 60.0, 600.0
"""The first and the longest wait, which doubles each time. If there is room, it asks at once."""


class UnfulfilledTopics:
    """Requests the unfulfilled topics of one connection again.

    The records that such a topic has missed are recovered as after a lost connection.

    Args:
        subscriptions: The wanted topics.
        expect: Called with topics before they are asked for again.
        recover: Recovers what is missing, after they were asked for.
    """

    def __init__(
        self,
        subscriptions: SubscriptionSet,
        expect: Callable[[Collection[Topic]], None],
        recover: Callable[[Session], Awaitable[None]],
    ) -> None:
        self._subscriptions = subscriptions
        self._expect = expect
        self._recover = recover
        self._room = anyio.Event()

    def room(self) -> None:
        """Ask at once, because topics were unsubscribed or the wanted topics changed."""
        self._room.set()

    async def keep_asking(self, session: Session) -> None:
        """Ask until cancelled.

        Raises:
            FeedUnavailable: The connection ended, or did not answer in time.
            FeedRefused: The feed refused something else than these topics.
        """
        pause_s = AGAIN_FIRST_S
        while True:
            with anyio.move_on_after(pause_s):
                await self._room.wait()
            pause_s = min(AGAIN_LIMIT_S, pause_s * 2)
            if self._room.is_set():
                self._room = anyio.Event()
                pause_s = AGAIN_FIRST_S
            session.forget_unwanted(self._subscriptions)
            giving_way = self._giving_way(session)
            unwanted = [t for t in session.acknowledged if t not in self._subscriptions]
            await session.unsubscribe([*unwanted, *giving_way])
            topics = [t for t in self._subscriptions.wanted if t not in session.acknowledged]
            if topics:
                await self._ask(session, topics)
            if self._giving_way(session) and not giving_way:
                self._room.set()  # a refused topic is more important than a subscribed one

    def _giving_way(self, session: Session) -> list[Topic]:
        """The subscribed topics to replace by more important unfulfilled ones."""
        if not session.over_limit:
            return []
        wanted = self._subscriptions.wanted
        ranks = {topic: rank for rank, topic in enumerate(wanted)}
        waiting = [t for t in wanted if t in session.over_limit]
        followed = [
            t
            for t in reversed(wanted)
            if t in session.acknowledged and self._subscriptions.gives_way(t)
        ]
        return [
            less for more, less in zip(waiting, followed, strict=False) if ranks[more] < ranks[less]
        ]

    async def _ask(self, session: Session, topics: Sequence[Topic]) -> None:
        self._expect(topics)
        refused = await session.subscribe_what_fits(topics)
        if refused is not None:
            raise refused.as_error()
        await self._recover(session)
