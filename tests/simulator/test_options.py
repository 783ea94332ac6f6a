"""The options market: chains, prices by Black and Scholes, quotes and trades."""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import date
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.symbol import is_option
from mdservice.model.timestamps import parse_rfc3339
from mdservice.simulator import SimulatorConfig
from mdservice.simulator.options import (
    QUOTES,
    TRADES,
    Contract,
    OptionsSource,
    SimOptionQuote,
    SimOptionTrade,
    chain,
    greeks,
    model_price,
    theoretical_quote,
    volatility,
)
from tests.examples import examples

NOW_NS = parse_rfc3339("2026-11-20T15:51:44Z")
SECOND_NS = 1_000_000_000
CALL = "AAPL261218C00190000"
PUT = "AAPL261218P00190000"
FAR = "AAPL261127C00400000"


def test_a_contract_reads_and_writes_its_symbol() -> None:
    contract = Contract.parse("SPY270115P00612500")
    assert contract == Contract.of("SPY", date(2027, 1, 15), is_call=False, strike=612.5)
    assert (contract.root, contract.is_call, contract.strike) == ("SPY", False, 612.5)


@pytest.mark.parametrize("symbol", ["AAPL", "AAPL261318C00190000", "AAPL261218C00000000", "*", ""])
def test_what_is_no_contract_is_refused(symbol: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Contract.parse(symbol)


def test_the_price_is_the_mean_of_what_the_option_pays() -> None:
    call = Contract.of("X", date(2027, 6, 18), is_call=True, strike=40.0)
    put = Contract.of("X", date(2027, 6, 18), is_call=False, strike=40.0)
    spot, years, sigma, rate, points = 42.0, 0.5, 0.2, 0.04, 20_000

    def at_expiry(point: int) -> float:
        z = NormalDist().inv_cdf((point + 0.5) / points)
        return spot * math.exp((rate - sigma**2 / 2) * years + sigma * math.sqrt(years) * z)

    ends = [at_expiry(point) for point in range(points)]
    discount = math.exp(-rate * years)
    paid = discount * sum(max(0.0, end - 40) for end in ends) / points
    price = model_price(call, spot, years, sigma)
    assert price == pytest.approx(paid, abs=2e-3)
    assert price - model_price(put, spot, years, sigma) == pytest.approx(spot - 40 * discount)


@pytest.mark.parametrize("is_call", [True, False])
def test_the_greeks_are_the_prices_derivatives(is_call: bool) -> None:
    contract = Contract.of("X", date(2027, 6, 18), is_call=is_call, strike=40.0)

    def price(spot: float = 42.0, years: float = 0.5, sigma: float = 0.2) -> float:
        return model_price(contract, spot, years, sigma)

    found = greeks(contract, 42.0, 0.5, 0.2)
    assert found["delta"] == pytest.approx((price(42.01) - price(41.99)) / 0.02, abs=1e-4)
    second = (price(42.1) - 2 * price(42.0) + price(41.9)) / 0.01
    assert found["gamma"] == pytest.approx(second, abs=1e-3)
    assert found["vega"] == pytest.approx((price(sigma=0.205) - price(sigma=0.195)), abs=1e-3)
    day = 1 / 365
    assert found["theta"] == pytest.approx(price(years=0.5 - day) - price(), abs=1e-3)
    assert (found["rho"] > 0) == is_call


@given(
    spot=st.floats(150, 250),
    strike=st.sampled_from([100.0, 180.0, 187.5, 190.0, 250.0, 400.0]),
    is_call=st.booleans(),
    widen=st.floats(0, 1),
    sizes=st.integers(0, (1 << 24) - 1),
    days=st.integers(-3, 700),
)
def test_a_quote_lies_around_the_models_price(
    spot: float, strike: float, is_call: bool, widen: float, sizes: int, days: int
) -> None:
    contract = Contract.of("AAPL", date(2026, 12, 18), is_call=is_call, strike=strike)
    now_ns = parse_rfc3339("2026-12-18T21:00:00Z") - days * 86_400 * SECOND_NS
    quote = theoretical_quote(contract, spot, now_ns, widen=widen, sizes=sizes)
    years = contract.years_left(now_ns)
    price = model_price(contract, spot, years, volatility(contract))
    assert 0 <= quote.bid < quote.ask
    assert quote.bid <= price + 1e-9 <= quote.ask + 2e-9
    assert (quote.bid == 0) == (quote.bid_size == 0) == (quote.bid_exchange == " ")
    assert quote.ask_size > 0
    intrinsic = max(0.0, spot - strike if is_call else strike - spot)
    if is_call or days <= 0:
        assert quote.ask >= intrinsic - 1e-6, "no one sells below the intrinsic value"
    for side in (quote.bid, quote.ask):
        assert round(side * 100) / 100 == side


def test_calls_get_cheaper_and_puts_dearer_with_the_strike() -> None:
    listed = list(chain("AAPL", NOW_NS))
    assert len(listed) == len({contract.symbol for contract in listed}) == 4 * 2 * 21
    assert all(is_option(contract.symbol) for contract in listed)
    assert {contract.expiry.weekday() for contract in listed} == {4}
    friday_close_ns = parse_rfc3339("2026-11-20T21:00:00Z")
    assert min(contract.expiry for contract in listed) == date(2026, 11, 20)
    later = [contract.expiry for contract in chain("AAPL", friday_close_ns)]
    assert min(later) == date(2026, 11, 27)
    lines = defaultdict(list)
    for contract in listed:
        quote = theoretical_quote(contract, 187.15, NOW_NS)
        lines[contract.expiry, contract.is_call].append(quote.bid + quote.ask)
    for (_, is_call), line in lines.items():
        assert line == sorted(line, reverse=is_call)
        assert line[0] != line[-1]


def run(
    seed: int, seconds: int, *symbols: str, rate: float = 50
) -> tuple[list[SimOptionTrade], list[SimOptionQuote]]:
    market = OptionsSource(SimulatorConfig(seed=seed, options_rate=rate))
    market.follow({"quotes": frozenset(symbols), "trades": frozenset()})
    made: dict[Any, list[Any]] = {TRADES: [], QUOTES: []}
    for second in range(1, seconds + 1):
        for kind, records in market.make(second, NOW_NS + second * SECOND_NS):
            made[kind] += records
    return made[TRADES], made[QUOTES]


@examples(20)
@given(seed=st.integers(0, 1 << 40))
def test_trades_have_prices_between_bid_and_ask(seed: int) -> None:
    trades, quotes = run(seed, 20, CALL, PUT, FAR)
    assert len(trades) + len(quotes) == 20 * 50
    assert trades
    for trade in trades:
        running = [
            quote
            for quote in quotes
            if quote.symbol == trade.symbol and quote.ts_event_ns < trade.ts_event_ns
        ][-1]
        assert max(running.bid, 0.01) <= trade.price <= running.ask
        assert trade.size > 0
    times = [quote.ts_event_ns for quote in quotes]
    assert times == sorted(set(times))
    assert any(quote.bid == 0 for quote in quotes if quote.symbol == FAR)
    assert all(quote.bid > 0 for quote in quotes if quote.symbol == CALL)
    assert len({quote.bid for quote in quotes if quote.symbol == CALL}) > 1


def test_the_same_seed_gives_the_same_market() -> None:
    assert run(3, 10, CALL, PUT) == run(3, 10, CALL, PUT)
    assert run(3, 10, CALL, PUT) != run(4, 10, CALL, PUT)


def test_a_quoted_stock_gives_the_price() -> None:
    spot = 300.0
    market = OptionsSource(SimulatorConfig(), lambda *_: spot)
    market.follow({"quotes": {CALL}})
    dear = market.take(50, NOW_NS)[1][-1]
    spot = 150.0
    cheap = market.take(50, NOW_NS + SECOND_NS)[1][-1]
    assert dear.bid > 109
    assert cheap.ask < 5


def test_every_symbol_is_the_listed_contracts_of_the_busiest_stocks() -> None:
    listed = [contract.symbol for contract in chain("AAPL", NOW_NS)]
    market = OptionsSource(SimulatorConfig(silent_symbols=listed))
    market.follow({"trades": {"*", "AAPL261318C00190000"}})
    quotes = market.take(2_000, NOW_NS)[1]
    assert {Contract.parse(quote.symbol).root for quote in quotes} == {
        *("NVDA", "TSLA", "SPY", "AMD"),
    }
