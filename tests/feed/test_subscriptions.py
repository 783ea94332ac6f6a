"""Which symbols are wanted, and by whom."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.feed.subscriptions import SubscriptionSet, chunks
from mdservice.model.feeds import Topic
from tests.topics import quotes

topics = st.lists(
    st.builds(
        Topic, st.sampled_from(["quotes", "trades"]), st.sampled_from(["AAPL", "MSFT", "SPY", "*"])
    ),
    max_size=6,
)
sources = st.sampled_from(["settings", "api", "positions"])
changes = st.lists(
    st.tuples(st.just("add"), topics, st.lists(sources, min_size=1, max_size=1))
    | st.tuples(st.just("remove"), topics, st.lists(sources, max_size=3)),
    max_size=20,
)


def sources_by_symbol(table: dict[Topic, set[str]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for topic, wants in table.items():
        if wants:
            found.setdefault(topic.symbol, set()).update(wants)
    return {symbol: sorted(found[symbol]) for symbol in sorted(found)}


def test_a_symbol_is_wanted_while_one_source_wants_it() -> None:
    subscriptions = SubscriptionSet()
    assert subscriptions.add(quotes("AAPL", "MSFT"), "settings") == [*quotes("AAPL", "MSFT")]
    assert subscriptions.add(quotes("AAPL"), "api") == [*quotes("AAPL")]
    assert subscriptions.add(quotes("AAPL"), "api") == [], "wanted already"
    assert subscriptions.remove(quotes("AAPL"), ["settings"]) == [], "the API still wants it"
    assert quotes("AAPL")[0] in subscriptions
    assert subscriptions.remove(quotes("AAPL"), ["api", "positions"]) == [*quotes("AAPL")]
    assert not subscriptions.wants("AAPL")
    assert subscriptions.wanted == quotes("MSFT")


def test_sources_are_sorted_as_the_api_shows_them() -> None:
    subscriptions = SubscriptionSet()
    for source in ("settings", "positions", "api"):
        subscriptions.add(quotes("MSFT", "AAPL"), source)
    assert list(subscriptions.sources().items()) == [
        ("AAPL", ["api", "positions", "settings"]),
        ("MSFT", ["api", "positions", "settings"]),
    ]


def test_symbols_that_are_not_wanted_are_no_error() -> None:
    assert SubscriptionSet().remove(quotes("AAPL"), ["api"]) == []


def test_wanted_is_a_snapshot() -> None:
    subscriptions = SubscriptionSet()
    subscriptions.add(quotes("AAPL"), "api")
    before = subscriptions.wanted
    subscriptions.add(quotes("MSFT"), "api")
    assert before == quotes("AAPL")


@given(changes)
def test_agrees_with_a_plain_table(changes: list[tuple[str, list[Topic], list[str]]]) -> None:
    subscriptions = SubscriptionSet()
    table: dict[Topic, set[str]] = defaultdict(set)
    order: list[Topic] = []
    for action, names, who in changes:
        before = {name: set(wants) for name, wants in table.items()}
        for name in names:
            if action == "add":
                table[name].update(who)
            else:
                table[name].difference_update(who)
        wanted = {name for name in table if table[name]}
        if action == "add":
            reported = subscriptions.add(names, who[0])
            expected = [name for name in names if who[0] not in before.get(name, set())]
        else:
            reported = subscriptions.remove(names, who)
            expected = [name for name in names if before.get(name) and name not in wanted]
        assert reported == list(dict.fromkeys(expected))
        order = [name for name in order if name in wanted]
        order += [name for name in dict.fromkeys(names) if name in wanted and name not in order]
        assert list(subscriptions.wanted) == order
        assert subscriptions.sources() == sources_by_symbol(table)
        assert len(subscriptions) == len(wanted)


steps = st.lists(
    st.tuples(st.just("follow"), topics, st.just("positions"))
    | st.tuples(st.sampled_from(["add", "remove"]), topics, sources),
    max_size=20,
)


@given(steps)
def test_what_is_followed_comes_last_by_its_importance_and_is_exactly_that(
    steps: list[tuple[str, list[Topic], str]],
) -> None:
    subscriptions = SubscriptionSet()
    table: dict[Topic, set[str]] = defaultdict(set)
    followed: list[Topic] = []
    for action, given_names, source in steps:
        names = list(dict.fromkeys(given_names))
        if action == "follow":
            followed = names
            before = {name for name in table if table[name]}
            for wants in table.values():
                wants.discard(source)
            for name in names:
                table[name].add(source)
            gone = subscriptions.follow(names, source)
            assert set(gone) == {name for name in before if not table[name]}
        elif action == "add":
            subscriptions.add(names, source)
            for name in names:
                table[name].add(source)
        else:
            subscriptions.remove(names, [source])
            for name in names:
                table[name].discard(source)
        assert subscriptions.sources() == sources_by_symbol(table)
        last = [name for name in subscriptions.wanted if subscriptions.gives_way(name)]
        assert list(subscriptions.wanted[len(subscriptions) - len(last) :]) == last
        ranked = [name for name in last if name in followed]
        assert ranked == [name for name in followed if name in ranked]
        if action == "follow":
            assert set(last) == {name for name in names if table[name] == {source}}


@given(st.lists(st.integers()), st.integers(1, 10))
def test_chunks_are_full_but_the_last_and_lose_nothing(items: list[int], size: int) -> None:
    names = [str(item) for item in items]
    parts = list(chunks(names, size))
    assert [name for part in parts for name in part] == names
    assert all(len(part) == size for part in parts[:-1])
    assert all(1 <= len(part) <= size for part in parts)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (200, [200]), (401, [200, 200, 1])])
def test_chunk_sizes(count: int, sizes: list[int]) -> None:
    assert [len(part) for part in chunks(map(str, range(count)), 200)] == sizes
