"""Requests to the feed connection, and their answers."""

from __future__ import annotations

from typing import Literal

import attrs

from mdservice.actors.actor import Answer

__all__ = ["Command", "Follow", "Outcome", "Subscribe", "SubscriptionResult", "Unsubscribe"]


Outcome = Literal["subscribed", "unsubscribed", "pending"]


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
