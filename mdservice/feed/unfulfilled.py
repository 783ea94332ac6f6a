"""Requests again the wanted symbols that the feed does not deliver: *unfulfilled* symbols.

At the symbol limit it also unsubscribes less important symbols of open positions in favour of more
important ones, and symbols that are no longer wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio

from mdservice.feed.gap_repair.repair import GapRepair
from mdservice.feed.session import Session
from mdservice.feed.subscriptions import SubscriptionSet

__all__ = ["AGAIN_FIRST_S", "AGAIN_LIMIT_S", "UnfulfilledSymbols"]

AGAIN_FIRST_S, AGAIN_LIMIT_S = 60.0, 600.0
"""The first and the longest wait, which doubles each time. If there is room, it asks at once."""


class UnfulfilledSymbols:
    """Requests the unfulfilled symbols of one connection again.

    The quotes that such a symbol has missed are repaired as after a lost connection.

    Args:
        book: The wanted symbols.
        repair: Fetches the missed quotes.
    """

    def __init__(self, book: SubscriptionSet, repair: GapRepair[Any]) -> None:
        self._book = book
        self._repair = repair
        self._room = anyio.Event()

    def room(self) -> None:
        """Ask at once, because symbols were unsubscribed or the wanted symbols changed."""
        self._room.set()

    async def keep_asking(self, session: Session) -> None:
        """Ask until cancelled.

        Raises:
            FeedUnavailable: The connection ended, or did not answer in time.
            FeedRefused: The feed refused something else than these symbols.
        """
        pause_s = AGAIN_FIRST_S
        while True:
            with anyio.move_on_after(pause_s):
                await self._room.wait()
            pause_s = min(AGAIN_LIMIT_S, pause_s * 2)
            if self._room.is_set():
                self._room = anyio.Event()
                pause_s = AGAIN_FIRST_S
            session.forget_unwanted(self._book)
            giving_way = self._giving_way(session)
            unwanted = [s for s in session.acknowledged if s not in self._book]
            await session.unsubscribe([*unwanted, *giving_way])
            symbols = [s for s in self._book.wanted if s not in session.acknowledged]
            if symbols:
                await self._ask(session, symbols)
            if self._giving_way(session) and not giving_way:
                self._room.set()  # a refused symbol is more important than a subscribed one

    def _giving_way(self, session: Session) -> list[str]:
        """The subscribed symbols to replace by more important unfulfilled ones."""
        wanted = self._book.wanted
        ranks = {symbol: rank for rank, symbol in enumerate(wanted)}
        waiting = [s for s in wanted if s in session.over_limit]
        followed = [
            s for s in reversed(wanted) if s in session.acknowledged and self._book.gives_way(s)
        ]
        return [
            less for more, less in zip(waiting, followed, strict=False) if ranks[more] < ranks[less]
        ]

    async def _ask(self, session: Session, symbols: Sequence[str]) -> None:
        self._repair.expect(symbols)
        refused = await session.subscribe_what_fits(symbols)
        if refused is not None:
            raise refused.as_error()
        await self._repair.repair(session.acknowledged, session.left_out)
