"""From when history is asked for each symbol, whatever goes out between loss and return."""

from __future__ import annotations

from mdservice.feed.gap_repair.missing import Missed, MissingRecords
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.router.sequencer import Sequencer

SECOND_NS = 10**9
OVERLAP_NS = 5 * SECOND_NS


def out(sequencer: Sequencer, symbol: str, at_s: float) -> None:
    at_ns = int(at_s * SECOND_NS)
    sequencer.route([Quote(symbol, at_s, at_s + 1, 1, 1, at_ns, at_ns)], at_ns, SECOND_NS)


def at(second: float) -> int:
    return int(second * SECOND_NS)


def followed(*symbols: str, out_at_s: float = 100) -> tuple[MissingRecords, Sequencer]:
    sequencer = Sequencer(QUOTES)
    missing = MissingRecords(sequencer)
    missing.follow(symbols, at(10))
    out(sequencer, "AAPL", out_at_s)
    return missing, sequencer


def test_it_is_asked_from_before_the_last_quote_of_all() -> None:
    missing, sequencer = followed("AAPL", "MSFT")
    out(sequencer, "MSFT", 90)
    missing.lose(["AAPL", "MSFT"], at(101))
    assert missing.back(["AAPL", "MSFT"], []) == [Missed(at(95), ["AAPL", "MSFT"])]


def test_quotes_that_go_out_later_hide_nothing() -> None:
    missing, sequencer = followed("AAPL", "MSFT")
    missing.lose(["AAPL", "MSFT"], at(101))
    out(sequencer, "AAPL", 200)
    missing.lose(["AAPL"], at(201))
    assert missing.back(["AAPL", "MSFT"], []) == [Missed(at(95), ["AAPL", "MSFT"])]


def test_what_is_left_out_is_kept_and_what_is_wanted_no_longer_is_not() -> None:
    missing, sequencer = followed("AAPL", "MSFT", "SPY")
    missing.lose(["AAPL", "MSFT", "SPY"], at(101))
    back = missing.back(["AAPL"], ["MSFT"])
    assert [part.symbols for part in back] == [["AAPL"]]
    missing.reported(back, complete=["AAPL"])
    out(sequencer, "AAPL", 200)
    missing.lose(["AAPL"], at(201))
    assert missing.back(["AAPL", "MSFT", "SPY"], []) == [
        Missed(at(195), ["AAPL"]),
        Missed(at(95), ["MSFT"]),
    ]


def test_of_a_symbol_without_a_quote_nothing_is_missing_from_before_it_was_followed() -> None:
    missing, _ = followed("AAPL")
    missing.follow(["AAPL", "MSFT"], at(99))
    missing.lose(["AAPL", "MSFT"], at(101))
    assert missing.back(["AAPL", "MSFT"], []) == [
        Missed(at(99), ["MSFT"]),
        Missed(at(95), ["AAPL"]),
    ]


def test_before_any_quote_nothing_is_known_to_be_missing() -> None:
    missing = MissingRecords(Sequencer(QUOTES))
    missing.lose(["AAPL"], at(1))
    assert not missing
    assert missing.back(["AAPL"], []) == []


def test_before_any_quote_what_is_subscribed_is_missing_since_then() -> None:
    missing = MissingRecords(Sequencer(QUOTES))
    missing.follow(["AAPL"], at(1))
    missing.lose(["AAPL", "MSFT"], at(9))
    assert missing.symbols() == {"AAPL"}
    assert missing.back(["AAPL"], []) == [Missed(at(1), ["AAPL"])]


def test_with_star_those_seen_are_missing() -> None:
    missing, sequencer = followed("*")
    out(sequencer, "MSFT", 99)
    missing.lose(["*"], at(101))
    assert "MSFT" in missing
    assert missing.back(["*"], []) == [Missed(at(95), ["AAPL", "MSFT"])]


def test_a_symbol_whose_repair_failed_is_asked_from_before_its_own_last_quote() -> None:
    missing, sequencer = followed("AAPL", "MSFT")
    out(sequencer, "MSFT", 90)
    missing.lose(["AAPL", "MSFT"], at(101))
    missing.reported(missing.back(["AAPL", "MSFT"], []), complete=["AAPL"])
    out(sequencer, "AAPL", 200)
    missing.lose(["AAPL", "MSFT"], at(201))
    back = missing.back(["AAPL", "MSFT"], [])
    of_aapl, of_msft = back
    assert of_aapl == Missed(at(195), ["AAPL"])
    assert of_msft.symbols == ["MSFT"]
    assert at(90) - 2 * (at(195) - at(90)) < of_msft.since_ns <= at(90)
    missing.reported(back, complete=["AAPL", "MSFT"])
    out(sequencer, "AAPL", 300)
    missing.lose(["MSFT"], at(301))
    assert missing.back(["MSFT"], []) == [Missed(at(295), ["MSFT"])]


def test_symbols_whose_repair_failed_are_asked_in_few_requests() -> None:
    names = [f"A{number}" for number in range(100)]
    missing, sequencer = followed("AAPL", *names)
    for number, name in enumerate(names):
        out(sequencer, name, 101 + number / 1000)
    missing.lose(names, at(102))
    missing.reported(missing.back(names, []), complete=[])
    out(sequencer, "AAPL", 200)
    missing.lose(names, at(201))
    (part,) = missing.back(names, [])
    assert part.since_ns <= at(101)
    assert set(part.symbols) == set(names)
