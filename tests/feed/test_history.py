"""A refused symbol costs itself: found by halving, set aside, asked for again later."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mdservice.errors import HistoryRefused, HistoryUnavailable, SymbolsRefused
from mdservice.feed.history import SET_ASIDE_S, HalvingHistory
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.testing import FakeHistory

CALLS = ("past", "latest")
SYMBOLS = [f"S{number:03}" for number in range(1_000)]
SILENT = "history was refused with HTTP 400: bad request"


def open_history(
    *refused: str, symbols: list[str] = SYMBOLS, words: str = SILENT
) -> tuple[FakeHistory, HalvingHistory]:
    fake = FakeHistory()
    fake.add([Quote(symbol, 1.0, 2.0, 1, 1, 5, 5) for symbol in symbols])
    fake.refuses = {symbol: words.format(symbol) for symbol in refused}
    return fake, HalvingHistory(fake, QUOTES)


async def ask(history: HalvingHistory, call: str, symbols: list[str]) -> Any:
    if call == "latest":
        return await history.latest(symbols)
    return await history.past(symbols, 0, 10)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "refused",
    [
        ["S000"],
        ["S199"],
        ["S200"],
        ["S999"],
        ["S000", "S001"],
        ["S000", "S100", "S199", "S500"],
        SYMBOLS[:30],
        SYMBOLS[::100],
    ],
    ids=lambda refused: f"{len(refused)} from {refused[0]}",
)
@pytest.mark.parametrize("words", [SILENT, "HTTP 422: invalid symbol: {}", "HTTP 404: symbol"])
async def test_all_others_are_found_once(
    autojump_clock: Any, call: str, refused: list[str], words: str
) -> None:
    fake, history = open_history(*refused, words=words)
    found = await ask(history, call, SYMBOLS)
    others = [symbol for symbol in SYMBOLS if symbol not in refused]
    assert sorted(quote.symbol for quote in found.records) == others
    assert sorted(found.refused) == sorted(history.set_aside) == refused
    assert history.symbols_refused == len(refused)
    assert len(fake.requests) <= 5 + len(refused) * 17


@pytest.mark.parametrize("call", CALLS)
async def test_a_symbol_set_aside_is_not_asked_for(autojump_clock: Any, call: str) -> None:
    fake, history = open_history("S002")
    await ask(history, call, SYMBOLS[:5])
    fake.requests.clear()
    found = await ask(history, call, SYMBOLS[:5])
    assert [request.symbols for request in fake.requests] == [("S000", "S001", "S003", "S004")]
    assert found.refused == {"S002": SILENT}
    assert history.symbols_refused == 1


async def test_it_is_asked_for_again_later_and_spoils_nothing(autojump_clock: Any) -> None:
    fake, history = open_history("S002")
    await ask(history, "past", SYMBOLS[:5])
    fake.requests.clear()
    await anyio.sleep(SET_ASIDE_S + 1)
    found = await ask(history, "past", SYMBOLS[:5])
    assert len(found.records) == 4
    assert [len(request.symbols) for request in fake.requests] == [4, 1]
    assert list(history.set_aside) == ["S002"]
    await anyio.sleep(SET_ASIDE_S + 1)
    fake.refuses = {}
    assert len((await ask(history, "past", SYMBOLS[:5])).records) == 5
    assert not history.set_aside


async def test_one_that_is_followed_again_is_asked_for_again(autojump_clock: Any) -> None:
    fake, history = open_history("S002")
    await ask(history, "past", SYMBOLS[:5])
    history.forget(["S002", "S003"])
    fake.refuses = {}
    assert len((await ask(history, "past", SYMBOLS[:5])).records) == 5


@pytest.mark.parametrize("count", [1, 2, 10, 200, 1_000])
async def test_another_reason_is_not_looked_for_in_each_symbol(
    autojump_clock: Any, count: int
) -> None:
    symbols = SYMBOLS[:count]
    fake, history = open_history(*symbols, words="HTTP 400: invalid start")
    with pytest.raises(HistoryRefused, match="invalid start"):
        await ask(history, "past", symbols)
    assert len(fake.requests) <= 26
    assert not history.set_aside


@pytest.mark.parametrize("error", [HistoryRefused("403: plan"), HistoryUnavailable("503")])
async def test_errors_of_another_kind_are_not_halved(autojump_clock: Any, error: Exception) -> None:
    fake, history = open_history()
    fake.always = error
    with pytest.raises(type(error)):
        await ask(history, "latest", SYMBOLS)
    assert len(fake.requests) == 1


async def test_the_only_symbol_is_set_aside_where_the_refusal_is_about_it(
    autojump_clock: Any,
) -> None:
    _, history = open_history("BRK/B", words="HTTP 400: invalid symbol: {}")
    found = await ask(history, "latest", ["BRK/B"])
    assert (found.records, list(found.refused)) == ([], ["BRK/B"])


async def test_requests_of_one_call_are_bounded(autojump_clock: Any) -> None:
    refused = SYMBOLS[1::2]
    fake, history = open_history(*refused)
    found = await ask(history, "latest", SYMBOLS)
    assert len(fake.requests) <= 260
    asked = {quote.symbol for quote in found.records}
    assert asked | found.refused.keys() == set(SYMBOLS)
    assert history.set_aside.keys() <= set(refused)


async def test_a_failure_in_the_middle_keeps_what_was_found_out(autojump_clock: Any) -> None:
    fake, history = open_history()
    fake.script.extend([SymbolsRefused("bad"), None, SymbolsRefused("bad"), HistoryUnavailable("")])
    with pytest.raises(HistoryUnavailable):
        await ask(history, "latest", SYMBOLS[:8])
    fake.script.clear()
    assert len((await ask(history, "latest", SYMBOLS[:8])).records) == 8
