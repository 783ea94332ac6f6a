"""The news: headlines about the simulated symbols, some of them updated later.

Pure: elapsed time and the clock's time are arguments.

Source: Alpaca, "Real-time News" and "News articles". Both times of an article are RFC 3339 text
in JSON and timestamps in msgpack, as alpaca-py demands.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any, Final

import msgspec

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import LATEST_NS
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.crypto import PAIRS
from mdservice.simulator.feeds import NEWS
from mdservice.simulator.http import Answer, Call, malformed
from mdservice.simulator.kinds import Batch, Records, SimKind, SimMarket, Source
from mdservice.simulator.market import UNIVERSE, MarketRecord
from mdservice.simulator.rest_history import (
    PageToken,
    RestRules,
    limit_parameter,
    symbols_parameter,
    time_parameter,
)
from mdservice.simulator.wire import Encoding, OutFrame, encode_items, encode_timestamp

__all__ = ["ARTICLES", "NEWS_MARKET", "NewsSource", "SimArticle"]

_FIRST_ID = 42_000_000
_SECOND_NS = 1_000_000_000
_DAY_NS = 86_400 * _SECOND_NS
_DEFAULT_LIMIT, _MOST_PER_PAGE = 10, 50
_MOST_AT_ONCE = 100
_UPDATED_BELOW = 0.25
"""The part of the articles that get a second version."""
_LONG_BELOW = 0.0625
"""The part of the articles with about 100 KiB of content."""
_LONG = 250
_ROUND_UP_BELOW = 0.25
"""The part of the articles about several symbols."""
_GENERAL_BELOW = 0.05
"""The part of the articles about no symbol, where everything is followed."""

_HEADLINES = (
    "{0} Shares Move After Analyst Day: What Investors Should Know",
    "{0} Beats Quarterly Estimates and Raises Its Outlook",
    "{0} Misses Revenue Estimates; Margins Hold",
    "Analyst Upgrades {0} to Buy",
    "Analyst Downgrades {0} on Valuation",
    "{0} Announces a $2 Billion Buyback",
    "Unusual Options Activity in {0}",
    "Why {0} Is on the Move Today",
)
_ROUND_UPS = (
    "{0}, {1}: Stocks That Moved Before the Bell",
    "Sector Watch: {0} and {1} Lead the Gainers",
)
_GENERAL = ("Futures Are Flat Before the Fed's Decision", "Treasury Yields Ease After Auction")
_AUTHORS = ("Ada Moreno", "Ben Okafor", "Chen Wei", "Dora Lindqvist", "Newsdesk")
_PARAGRAPH = (
    "<p>{0} was among the most discussed names of the session. Volume was above its average of "
    "the past month, and the desk reports interest from both sides. <strong>Note:</strong> this "
    "article was written by a simulator &amp; is about an invented market.</p>\n"
)


class SimArticle(msgspec.Struct, frozen=True):
    """An article, or a new version of one.

    Attributes:
        id: The same for all versions; rises from article to article.
        headline: Text.
        symbols: What it is about; may be empty.
        summary: Text; may be empty.
        content: HTML; may be very long.
        author: A name.
        url: Where it is.
        source: Who publishes it.
        created_ns: When the first version was published, UTC nanoseconds; 0 for ``ts_event_ns``.
        ts_event_ns: When this version was published, UTC nanoseconds.
        symbol: ``*``: all articles are kept in one order.
    """

    id: int
    headline: str
    symbols: tuple[str, ...] = ()
    summary: str = ""
    content: str = ""
    author: str = "Newsdesk"
    url: str = ""
    source: str = "benzinga"
    created_ns: int = 0
    ts_event_ns: int = 0
    symbol: str = EVERY_SYMBOL

    def row(self, encoding: Encoding) -> dict[str, Any]:
        """Alpaca's fields."""
        return {
            "id": self.id,
            "headline": self.headline,
            "summary": self.summary,
            "author": self.author,
            "created_at": encode_timestamp(self.created_ns or self.ts_event_ns, encoding),
            "updated_at": encode_timestamp(self.ts_event_ns, encoding),
            "content": self.content,
            "url": self.url,
            "symbols": self.symbols,
            "source": self.source,
        }


class NewsSource:
    """Writes articles about the followed symbols.

    The n-th article of the same symbols depends on the seed alone.

    Args:
        config: The seed of every random choice, and the symbols that articles leave out.
        every_s: Mean seconds between two articles.
    """

    def __init__(self, config: SimulatorConfig, every_s: float) -> None:
        self._random = random.Random(f"{config.seed}/news")  # noqa: S311 - reproducible
        self._silent = config.silent_symbols
        self._every_s = every_s
        self._next_s = self._wait_s()
        self._id = _FIRST_ID + self._random.getrandbits(20)
        self._updates: list[tuple[float, SimArticle]] = []
        """Articles that will be updated, and when, in seconds."""
        self._followed: frozenset[str] = frozenset()
        self._symbols: tuple[str, ...] = ()
        self._last_ns = 0

    @property
    def symbols(self) -> AbstractSet[str]:
        """Those followed; ``*`` for every stock and pair of the simulation."""
        return self._followed

    def follow(self, wanted: Mapping[str, AbstractSet[str]]) -> None:
        """Write about these symbols from now on."""
        self._followed = frozenset().union(*wanted.values()) - self._silent
        symbols = set(self._followed)
        if EVERY_SYMBOL in symbols:
            symbols.remove(EVERY_SYMBOL)
            # Articles name pairs without the slash.
            symbols.update(UNIVERSE, (pair.replace("/", "") for pair in PAIRS))
        self._symbols = tuple(sorted(symbols - self._silent))

    def make(self, elapsed_s: float, now_ns: int) -> Iterable[Batch]:
        """The articles that are due."""
        articles = self.take(elapsed_s, now_ns)
        return [(ARTICLES, articles)] if articles else []

    def take(self, elapsed_s: float, now_ns: int) -> list[SimArticle]:
        """The articles and updates that have come due, with rising times up to ``now_ns``.

        Args:
            elapsed_s: Seconds; articles of a pause longer than a hundred of them are left out.
            now_ns: UTC nanoseconds.
        """
        made: list[SimArticle] = []
        if not self._symbols:
            return made
        while self._next_s <= elapsed_s and len(made) < _MOST_AT_ONCE:
            article = self._article(self._time(now_ns))
            made.append(article)
            if self._random.random() < _UPDATED_BELOW:
                self._updates.append((self._next_s + self._wait_s(), article))
            self._next_s += self._wait_s()
        self._next_s = max(self._next_s, elapsed_s) if len(made) == _MOST_AT_ONCE else self._next_s
        made += [
            self._update(article, self._time(now_ns))
            for due_s, article in self._updates
            if due_s <= elapsed_s
        ]
        self._updates = [each for each in self._updates if each[0] > elapsed_s]
        return made

    def _wait_s(self) -> float:
        return self._every_s * (0.5 + self._random.random())

    def _time(self, now_ns: int) -> int:
        """Whole milliseconds, as far as the clock allows rising ones."""
        now_ns -= now_ns % 1_000_000
        self._last_ns = now_ns = self._last_ns + 1 if now_ns <= self._last_ns else now_ns
        return now_ns

    def _article(self, ts_ns: int) -> SimArticle:
        draw = self._random
        self._id += 1 + draw.getrandbits(3)
        symbols: tuple[str, ...] = (draw.choice(self._symbols),)
        headline = draw.choice(_HEADLINES)
        kind, length = draw.random(), draw.random()
        if EVERY_SYMBOL in self._followed and kind < _GENERAL_BELOW:
            symbols, headline = (), draw.choice(_GENERAL)
        elif len(self._symbols) > 1 and kind > 1 - _ROUND_UP_BELOW:
            symbols = tuple(draw.sample(self._symbols, 2))
            headline = draw.choice(_ROUND_UPS)
        headline = headline.format(*symbols)
        paragraphs = _LONG if length < _LONG_BELOW else int(length * 4)
        name = symbols[0] if symbols else "The market"
        return SimArticle(
            self._id,
            headline,
            symbols,
            f"{headline}." if length < 0.5 else "",  # noqa: PLR2004 - half of them
            _content(name, paragraphs),
            draw.choice(_AUTHORS),
            f"https://news.example/{self._id}",
            created_ns=ts_ns,
            ts_event_ns=ts_ns,
        )

    def _update(self, article: SimArticle, ts_ns: int) -> SimArticle:
        return msgspec.structs.replace(
            article,
            headline=f"UPDATE: {article.headline}",
            content=_longer(article.content),
            ts_event_ns=ts_ns,
        )


@lru_cache(maxsize=256)
def _content(name: str, paragraphs: int) -> str:
    """Shared by all articles with it, as they are kept for long."""
    return _PARAGRAPH.format(name) * paragraphs


@lru_cache(maxsize=256)
def _longer(content: str) -> str:
    return content + _PARAGRAPH.format("It")


def _encode(
    articles: Sequence[SimArticle], encoding: Encoding, /, *, spoil: bool = False
) -> OutFrame:
    items: list[dict[str, Any]] = [{"T": "n", **article.row(encoding)} for article in articles]
    if spoil:
        items.insert(len(items) // 2, {"T": "n", "id": "no number", "symbols": 7})
    return encode_items(items, encoding)


def _wants(article: SimArticle, wanted: AbstractSet[str]) -> bool:
    return EVERY_SYMBOL in wanted or not wanted.isdisjoint(article.symbols)


ARTICLES: Final[SimKind[SimArticle]] = SimKind(NEWS, "news", _encode, wants=_wants)


def _source(config: SimulatorConfig, _records: Records) -> Source | None:
    if not config.rate or config.news_every_s is None:
        return None
    return NewsSource(config, config.news_every_s)


def _page_key(article: SimArticle) -> tuple[int, int]:
    return article.ts_event_ns, article.id


def _page(call: Call, articles: MarketRecord[SimArticle], rules: RestRules) -> bytes:
    """The last version of each article, the newest first unless ``sort`` is ``asc``."""
    params, now_ns = call.params, call.now_ns
    wanted = frozenset(symbols_parameter(params, rules) if params.get("symbols") else "*")
    start_ns = time_parameter(params, "start", now_ns - now_ns % _DAY_NS, day_ns=0)
    end_ns = time_parameter(params, "end", LATEST_NS, day_ns=_DAY_NS - 1)
    if rules.lag_s:
        end_ns = min(end_ns, now_ns - round(rules.lag_s * _SECOND_NS))
    sort = params.get("sort") or "desc"
    if sort not in {"asc", "desc"}:
        malformed(f"invalid sort: {sort[:40]}")
    limit = min(limit_parameter(params, _DEFAULT_LIMIT, _MOST_PER_PAGE), rules.page_size)
    with_content = params.get("include_content", "").lower() == "true"
    with_content_alone = params.get("exclude_contentless", "").lower() == "true"
    # In the order of their times, so the last one of an id is its last version.
    last = {article.id: article for article in articles.between("*", 0, end_ns, most=sys.maxsize)}
    found = [
        article
        for article in last.values()
        if article.ts_event_ns >= start_ns
        and _wants(article, wanted)
        and (article.content or not with_content_alone)
    ]
    found.sort(key=_page_key, reverse=sort == "desc")
    if params.get("page_token"):
        token = PageToken.parse(params["page_token"])
        behind = token.ts_ns, token.count
        found = [
            article
            for article in found
            if (_page_key(article) < behind if sort == "desc" else _page_key(article) > behind)
        ]
    page = found[:limit]
    rows = [{**article.row("json"), "images": []} for article in page]
    for row in rows:
        row["content"] = row["content"] if with_content else ""
    more = len(found) > limit
    token_text = PageToken("*", page[-1].ts_event_ns, page[-1].id).text() if more else None
    return msgspec.json.encode({"news": rows, "next_page_token": token_text})


def _routes(records: Records, rules: RestRules) -> Mapping[str, Answer]:
    return {"/v1beta1/news": lambda call: _page(call, records[ARTICLES], rules)}


NEWS_MARKET: Final = SimMarket((ARTICLES,), _source, _routes)
