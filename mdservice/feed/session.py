"""The subscriptions of one open connection, and one request at a time to change them.

A feed answers a request with all topics that are now subscribed, or with a refusal that does not
name the request. So requests never overlap: each waits for its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import attrs

from mdservice.errors import FeedUnavailable
from mdservice.feed.driver import Acknowledged, Link, Received, RequestRefused
from mdservice.feed.subscriptions import Followed, SubscriptionSet, chunks
from mdservice.model.feeds import Topic, symbols_of
from mdservice.model.kinds import QUOTES, Kind
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger
from mdservice.runtime.actor import Answer

__all__ = ["ACK_TIMEOUT_S", "CHUNK_SIZE", "NOT_ACKNOWLEDGED", "Session", "named"]

_log = get_logger(__name__)

CHUNK_SIZE = 200
"""The maximum number of topics in one request, below the message limit of every known feed."""
ACK_TIMEOUT_S = 5.0
"""How long an answer to a request may take before the connection counts as broken."""

NOT_ACKNOWLEDGED = 0
"""The code of a refusal that the feed did not send: it acknowledged only some topics."""

_MOST_NAMED = 5
_NARROWED = ("bad_symbol", "symbol_limit")
"""The causes of a refusal that concern single topics, found by halving."""


def _only_some_offered(refused: RequestRefused, topics: Sequence[Topic]) -> bool:
    """Whether the feed may lack one of the channels, and still have quotes."""
    if refused.cause != "not_offered":
        return False
    return any(topic.channel != QUOTES.channel for topic in topics)


def _halves(topics: Sequence[Topic]) -> list[list[Topic]]:
    middle = len(topics) // 2
    return [list(topics[:middle]), list(topics[middle:])]


def named(topics: Iterable[Topic]) -> str:
    """The topics in words; of quotes only the symbols: ``AAPL, trades of MSFT``."""
    return ", ".join(
        t.symbol if t.channel == QUOTES.channel else f"{t.channel} of {t.symbol}" for t in topics
    )


class Session:
    """The subscriptions of one link.

    Args:
        link: An open link that has logged in.
        followed: The topics whose records the link accepts.

    Attributes:
        acknowledged: The topics that are subscribed, as the feed has last acknowledged them.
        left_out: The unfulfilled topics, with the reason.
    """

    def __init__(self, link: Link, followed: Followed) -> None:
        self._link = link
        self._followed = followed
        self._one_request = anyio.Lock()
        self._request: Answer[Acknowledged | RequestRefused] | None = None
        self._reading = anyio.CancelScope()
        self._ended: FeedUnavailable | None = None
        self.acknowledged: frozenset[Topic] = frozenset()
        self._followed_symbols: dict[Kind[Any] | None, tuple[str, ...]] = {}
        self.left_out: dict[Topic, str] = {}
        self._words: dict[Topic, str] = {}
        """The feed's own message for each unfulfilled topic, empty without one."""
        self._not_known: set[Topic] = set()
        """The topics that the feed does not know."""
        self.over_limit: set[Topic] = set()
        """The unfulfilled topics that only the symbol limit keeps out."""

    # Reading

    @contextmanager
    def reading(self) -> Iterator[Link]:
        """A context manager for reading the link; requests are answered only within its block.

        The block receives from the link, forwards the quotes, and then calls :meth:`take`.

        Raises:
            FeedUnavailable: The feed did not answer a request in time.
        """
        try:
            with self._reading:
                yield self._link
        finally:
            self._end(FeedUnavailable("the connection ended before the feed had answered"))
        raise self._ended or FeedUnavailable("the connection ended")

    def take(self, received: Received) -> None:
        """Give the answers among the received messages to the request that waits for them."""
        for control in received.controls:
            if isinstance(control, Acknowledged):
                self.acknowledged = control.topics
                self._followed_symbols.clear()
            if self._request is not None:
                self._request.give(control)
            elif isinstance(control, RequestRefused):
                _log.warning("feed_error_ignored", code=control.code, reason=control.words)

    def _end(self, reason: FeedUnavailable) -> None:
        """Stop reading, and fail the waiting request. The reason of the first call stays."""
        self._ended = self._ended or reason
        self._reading.cancel()
        if self._request is not None:
            self._request.fail(self._ended)

    # Requests

    def symbols(self, kind: Kind[Any] | None = None) -> tuple[str, ...]:
        """The acknowledged symbols, of a kind or of all; asked for often, so computed once."""
        symbols = self._followed_symbols.get(kind)
        if symbols is None:
            symbols = self._followed_symbols[kind] = symbols_of(self.acknowledged, kind)
        return symbols

    def missing(self, wanted: Iterable[Topic]) -> list[Topic]:
        """The wanted topics that are neither acknowledged nor unfulfilled."""
        return [t for t in wanted if t not in self.acknowledged and t not in self.left_out]

    def forget_unwanted(self, wanted: SubscriptionSet) -> None:
        """Forget the unfulfilled topics that are no longer wanted."""
        self.left_out = {t: reason for t, reason in self.left_out.items() if t in wanted}
        self.over_limit &= self.left_out.keys()
        self._words = {t: words for t, words in self._words.items() if t in self.left_out}

    def why_left_out(self) -> dict[Topic, str]:
        """The unfulfilled topics, each with the feed's own message or else the reason."""
        return {t: self._words.get(t) or reason for t, reason in self.left_out.items()}

    def _leave_out(self, topic: Topic, reason: str, words: str = "") -> None:
        """Note an unfulfilled topic that is not kept out by the symbol limit."""
        self.left_out[topic] = reason
        self._words[topic] = words
        self.over_limit.discard(topic)

    def given(self, topic: Topic) -> None:
        """Note that a topic is no longer unfulfilled."""
        self.left_out.pop(topic, None)
        self.over_limit.discard(topic)

    async def free(self) -> None:
        """Wait until no request waits for an answer."""
        async with self._one_request:
            pass

    async def subscribe(self, topics: Sequence[Topic]) -> RequestRefused | None:
        """Subscribe all of the topics, or none.

        Returns:
            The refusal, or None. After a refusal the subscriptions are the same as before.

        Raises:
            FeedUnavailable: The connection ended, or did not answer in time.
        """
        async with self._one_request:
            before = self.acknowledged
            refused = await self._subscribe_all(topics)
            if refused is not None:
                await self._remove(self.acknowledged - before)
            return refused

    async def _subscribe_all(self, topics: Sequence[Topic]) -> RequestRefused | None:
        """Request the topics, and again those that the feed did not acknowledge."""
        for _ in range(2):
            for chunk in chunks([t for t in topics if t not in self.acknowledged], CHUNK_SIZE):
                answer = await self._ask("subscribe", chunk)
                if isinstance(answer, RequestRefused):
                    return await self._naming_the_cause(answer, chunk)
        missing = [t for t in topics if t not in self.acknowledged]
        if missing:
            return RequestRefused(
                f"the feed did not acknowledge {named(missing[:10])}", code=NOT_ACKNOWLEDGED
            )
        return None

    async def _naming_the_cause(
        self, refused: RequestRefused, chunk: Sequence[Topic]
    ) -> RequestRefused:
        """Find the topics that the feed does not know by halving: the refusal names none."""
        if refused.cause != "bad_symbol":
            return refused
        found = list(chunk) if len(chunk) == 1 else []
        todo = _halves(chunk) if len(chunk) > 1 else []
        while todo and len(found) < _MOST_NAMED:
            some = todo.pop(0)
            answer = await self._ask("subscribe", some)
            if isinstance(answer, RequestRefused) and len(some) > 1:
                todo[:0] = _halves(some)
            elif isinstance(answer, RequestRefused):
                found += some
        if not found:
            return refused
        return attrs.evolve(refused, reason=f"{refused.reason} ({named(found)})")

    async def unsubscribe(self, topics: Iterable[Topic]) -> None:
        """Unsubscribe those of the topics that are subscribed.

        Raises:
            FeedUnavailable: The connection ended, or did not answer in time.
        """
        async with self._one_request:
            await self._remove(self.acknowledged.intersection(topics))

    async def subscribe_what_fits(self, topics: Sequence[Topic]) -> RequestRefused | None:
        """Subscribe as many of the topics as the feed accepts; the others become unfulfilled.

        It halves a refused chunk until it finds the topic that causes the refusal. At the symbol
        limit, that topic and all later ones are unfulfilled; if the feed does not know the
        topic, only that one is.

        Returns:
            A refusal for another reason, or None.

        Raises:
            FeedUnavailable: The connection ended, or did not answer in time.
        """
        async with self._one_request:
            todo = list(chunks([t for t in topics if t not in self.acknowledged], CHUNK_SIZE))
            while todo:
                chunk = todo.pop(0)
                answer = await self._ask("subscribe", chunk)
                if isinstance(answer, RequestRefused):
                    if answer.cause not in _NARROWED and not _only_some_offered(answer, chunk):
                        return answer
                    if len(chunk) > 1:
                        todo[:0] = _halves(chunk)
                    elif answer.cause == "symbol_limit":
                        rest = [chunk[0], *(topic for later in todo for topic in later)]
                        self.left_out |= dict.fromkeys(rest, answer.reason)
                        self._words |= dict.fromkeys(rest, answer.words)
                        self.over_limit |= set(rest) - self._not_known
                        return None
                    else:
                        self._not_known.add(chunk[0])
                        self._leave_out(chunk[0], answer.reason, answer.words)
                        if self._lacks_channel(answer, chunk[0]):
                            todo = self._without_channel(todo, chunk[0].channel, answer)
                else:
                    await self._ask_again_for(set(chunk) - self.acknowledged)
                    for topic in self.acknowledged.intersection(chunk):
                        self.given(topic)
        return None

    def _lacks_channel(self, refused: RequestRefused, topic: Topic) -> bool:
        """Whether the feed has the refused topic's channel for no symbol."""
        return (
            refused.cause == "not_offered"
            and topic.symbol != EVERY_SYMBOL
            and all(given.channel != topic.channel for given in self.acknowledged)
        )

    def _without_channel(
        self, todo: Iterable[Sequence[Topic]], channel: str, refused: RequestRefused
    ) -> list[list[Topic]]:
        """Leave out all topics of a channel: each would cost several requests to find."""
        rest = []
        for some in todo:
            for topic in some:
                if topic.channel == channel:
                    self._leave_out(topic, refused.reason, refused.words)
            rest.append([topic for topic in some if topic.channel != channel])
        return [some for some in rest if some]

    async def _ask_again_for(self, missing: set[Topic]) -> None:
        """Request these once more: a feed may acknowledge a large request only in part."""
        if not missing:
            return
        answer = await self._ask("subscribe", sorted(missing))
        for topic in missing - self.acknowledged:
            if isinstance(answer, RequestRefused):
                self._leave_out(topic, answer.reason, answer.words)
            else:
                self._leave_out(topic, "not acknowledged")

    async def _remove(self, topics: Iterable[Topic]) -> None:
        for chunk in chunks(sorted(topics), CHUNK_SIZE):
            await self._ask("unsubscribe", chunk)

    async def _ask(
        self, action: Literal["subscribe", "unsubscribe"], topics: Sequence[Topic]
    ) -> Acknowledged | RequestRefused:
        if self._ended is not None:
            raise self._ended
        self._request = Answer()
        send = self._link.unsubscribe
        if action == "subscribe":
            send = self._link.subscribe
            self._followed.ask(topics)
        try:
            with anyio.fail_after(ACK_TIMEOUT_S):
                await send(topics)
                answer = await self._request.wait()
        except TimeoutError as exc:
            # A late answer would count as the answer to the next request, so reconnect.
            self._end(
                FeedUnavailable(f"the feed did not answer to {action} within {ACK_TIMEOUT_S:g} s")
            )
            raise self._ended or exc from exc
        else:
            if action == "unsubscribe" and isinstance(answer, Acknowledged):
                self._followed.give_up(topics)
            return answer
        finally:
            self._request = None
            self._followed.answered()
