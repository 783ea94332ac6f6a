"""Which symbols are wanted, and by whom."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.feed.subscriptions import SubscriptionSet, chunks

symbols = st.lists(st.sampled_from(["AAPL", "MSFT", "SPY", "QQQ", "*"]), max_size=6)
sources = st.sampled_from(["settings", "api", "positions"])
changes = st.lists(
    st.tuples(st.just("add"), symbols, st.lists(sources, min_size=1, max_size=1))
    | st.tuples(st.just("remove"), symbols, st.lists(sources, max_size=3)),
    max_size=20,
)


def test_a_symbol_is_wanted_while_one_source_wants_it() -> None:
    book = SubscriptionSet()
    assert book.add(["AAPL", "MSFT"], "settings") == ["AAPL", "MSFT"]
    assert book.add(["AAPL"], "api") == ["AAPL"]
    assert book.add(["AAPL"], "api") == [], "wanted already"
    assert book.remove(["AAPL"], ["settings"]) == [], "the API still wants it"
    assert "AAPL" in book
    assert book.remove(["AAPL"], ["api", "positions"]) == ["AAPL"]
    assert "AAPL" not in book
    assert book.wanted == ("MSFT",)


def test_sources_are_sorted_as_the_api_shows_them() -> None:
    book = SubscriptionSet()
    for source in ("settings", "positions", "api"):
        book.add(["MSFT", "AAPL"], source)
    assert list(book.sources().items()) == [
        ("AAPL", ["api", "positions", "settings"]),
        ("MSFT", ["api", "positions", "settings"]),
    ]


def test_symbols_that_are_not_wanted_are_no_error() -> None:
    assert SubscriptionSet().remove(["AAPL"], ["api"]) == []


def test_wanted_is_a_snapshot() -> None:
    book = SubscriptionSet()
    book.add(["AAPL"], "api")
    before = book.wanted
    book.add(["MSFT"], "api")
    assert before == ("AAPL",)


@given(changes)
def test_agrees_with_a_plain_table(changes: list[tuple[str, list[str], list[str]]]) -> None:
    book = SubscriptionSet()
    table: dict[str, set[str]] = defaultdict(set)
    order: list[str] = []
    for action, names, who in changes:
        before = {name: set(wants) for name, wants in table.items()}
        for name in names:
            if action == "add":
                table[name].update(who)
            else:
                table[name].difference_update(who)
        wanted = {name for name in table if table[name]}
        if action == "add":
            reported = book.add(names, who[0])
            expected = [name for name in names if who[0] not in before.get(name, set())]
        else:
            reported = book.remove(names, who)
            expected = [name for name in names if before.get(name) and name not in wanted]
        assert reported == list(dict.fromkeys(expected))
        order = [name for name in order if name in wanted]
        order += [name for name in dict.fromkeys(names) if name in wanted and name not in order]
        assert list(book.wanted) == order
        assert book.sources() == {name: sorted(table[name]) for name in sorted(wanted)}
        assert len(book) == len(wanted)


steps = st.lists(
    st.tuples(st.just("follow"), symbols, st.just("positions"))
    | st.tuples(st.sampled_from(["add", "remove"]), symbols, sources),
    max_size=20,
)


@given(steps)
def test_what_is_followed_comes_last_by_its_importance_and_is_exactly_that(
    steps: list[tuple[str, list[str], str]],
) -> None:
    book = SubscriptionSet()
    table: dict[str, set[str]] = defaultdict(set)
    followed: list[str] = []
    for action, given_names, source in steps:
        names = list(dict.fromkeys(given_names))
        if action == "follow":
            followed = names
            before = {name for name in table if table[name]}
            for wants in table.values():
                wants.discard(source)
            for name in names:
                table[name].add(source)
            gone = book.follow(names, source)
            assert set(gone) == {name for name in before if not table[name]}
        elif action == "add":
            book.add(names, source)
            for name in names:
                table[name].add(source)
        else:
            book.remove(names, [source])
            for name in names:
                table[name].discard(source)
        assert book.sources() == {n: sorted(table[n]) for n in sorted(table) if table[n]}
        last = [name for name in book.wanted if book.gives_way(name)]
        assert list(book.wanted[len(book) - len(last) :]) == last
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
