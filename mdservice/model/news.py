"""News articles."""

from __future__ import annotations

from collections.abc import Hashable

import attrs

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.written import NOT_WRITTEN, WrittenForm

__all__ = ["ARTICLES_KEPT", "NEWS_FORM", "Article", "article_identity"]

ARTICLES_KEPT = 1_000
"""How many of the newest articles the service can look up. Redis has more of them."""


@attrs.define
class Article:
    """One news article, or a new version of one.

    Attributes:
        id: Alpaca's number of the article; the same for all of its versions.
        headline, summary, author, content, url, source: As Alpaca sent them; None where it did not.
        symbols: The symbols that it is about, maybe none.
        created_at: When it was first published, as Alpaca wrote it.
        updated_at: When this version was published, likewise.
        ts_event_ns: ``updated_at``, or else ``created_at``, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: Counts accepted articles since the service started; not written.
        symbol: ``*``: an article is of no single symbol, so all articles are in one order.
        wire: The message as the feed sent it; see :class:`~mdservice.model.kinds.Record`.
    """

    id: int
    headline: str | None
    summary: str | None
    author: str | None
    content: str | None
    url: str | None
    source: str | None
    symbols: tuple[str, ...]
    created_at: str | None
    updated_at: str | None
    ts_event_ns: int
    ts_recv_ns: int
    seq: int = attrs.field(default=0, eq=False, metadata=NOT_WRITTEN)
    symbol: str = attrs.field(default=EVERY_SYMBOL, eq=False, metadata=NOT_WRITTEN)
    wire: bytes | None = attrs.field(default=None, eq=False, repr=False, metadata=NOT_WRITTEN)


def article_identity(article: Article) -> Hashable:
    """The values that make two versions of an article equal.

    The time as a number, since the stream and REST may write it differently.
    """
    return article.id, article.ts_event_ns


NEWS_FORM = WrittenForm(Article)
