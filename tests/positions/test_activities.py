"""The account and its activities: what is read, how pages are followed, and how failures end."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest

from mdservice.errors import AccountRefused, AccountUnavailable, ConfigurationError
from mdservice.positions.activities import AlpacaAccount, parse_account, parse_activities
from mdservice.runtime.network import HttpClient

DATE = "2026-11-20"
D = Decimal
Answer = Callable[[httpx.Request], httpx.Response]


def fill(number: int, **more: object) -> dict[str, object]:
    return {
        "id": f"20261120093000{number:03d}::{number}",
        "activity_type": "FILL",
        "transaction_time": f"2026-11-20T14:30:00.{number:03d}Z",
        "type": "fill",
        "price": "187.13",
        "qty": "10",
        "side": "buy",
        "symbol": "AAPL",
        "leaves_qty": "0",
        "order_id": "904837e3",
        "cum_qty": "10",
        **more,
    }


def other(kind: str, **more: object) -> dict[str, object]:
    found = {"id": f"20261120000000000::{kind}", "activity_type": kind, "date": DATE}
    return {**found, "net_amount": "0", "status": "executed", **more}


def read(*rows: object, currency: str = "USD") -> Any:
    return parse_activities(json.dumps(rows).encode(), "here", currency)[0]


def account_of(answer: Answer) -> AlpacaAccount:
    http = HttpClient(transport=httpx.MockTransport(answer))
    return AlpacaAccount("https://paper-api.alpaca.markets", "key", "secret", http)


def pages_of(rows: list[dict[str, object]], size: int = 100) -> Answer:
    """A server that follows tokens, and has at most so many rows on a page."""

    def answer(request: httpx.Request) -> httpx.Response:
        token = request.url.params.get("page_token")
        ids = [row["id"] for row in rows]
        first = ids.index(token) + 1 if token else 0
        return httpx.Response(200, json=rows[first : first + size])

    return answer


def test_a_fill() -> None:
    found = read(
        fill(1),
        fill(2, side="sell_short", qty=-2.5, price=187.5),
        fill(3, side="OrderSide.SELL", symbol="BTC/USD"),
        fill(4, status="canceled"),
    )
    assert [(one.symbol, one.qty, one.price) for one in found.fills] == [
        ("AAPL", D(10), D("187.13")),
        ("AAPL", D("-2.5"), D("187.5")),
        ("BTC/USD", D(-10), D("187.13")),
    ]
    assert found.fills[0].at_ns == 1_795_185_000_001_000_000
    assert found.last_id == fill(4)["id"]


@pytest.mark.parametrize(
    "broken",
    [{"qty": "x"}, {"price": None}, {"side": "?"}, {"transaction_time": "soon"}, {"qty": "NaN"}],
)
def test_an_unreadable_fill_makes_its_symbol_unknown(broken: dict[str, object]) -> None:
    found = read(fill(1, **broken), fill(2, symbol="MSFT"))
    assert [one.symbol for one in found.fills] == ["MSFT"]
    (booking,) = found.bookings
    assert (booking.changes, booking.date) == (
        "AAPL",
        "" if broken.get("transaction_time") else DATE,
    )


def test_fees() -> None:
    found = read(
        other("FEE", net_amount="-0.02"),
        other("FEE", id="b", net_amount=0.01),
        other("CFEE", symbol="ETHUSD", qty="-0.000195", price="1884.5"),
        other("CFEE", id="c", net_amount="-1.20", description="Coin Pair Transaction Fee (USD)"),
        other("DIVFEE", net_amount="-0.30", symbol="AAPL", qty="10"),
        other("PTC", net_amount="-0.40"),
        other("FEE", id="d", net_amount="?"),
        other("FEE", id="e", net_amount="-9", status="canceled"),
    )
    fees = [one.fee for one in found.bookings]
    assert fees == [D("0.02"), D("-0.01"), D("0.3674775"), D("1.2"), D("0.3"), D("0.4"), None]
    assert all(one.amount == 0 for one in found.bookings)
    (coins,) = [one.fill for one in found.bookings if one.fill is not None]
    assert (coins.symbol, coins.qty, coins.price) == ("ETHUSD", D("-0.000195"), D("1884.5"))


def test_what_moves_cash() -> None:
    found = read(
        other("CSD", net_amount="1234"),
        other("CSW", net_amount="-34.5"),
        other("DIV", net_amount="1.02", symbol="T", qty="2", per_share_amount="0.51"),
        other("INT", net_amount=None),
    )
    assert [one.amount for one in found.bookings] == [1234, D("-34.5"), D("1.02"), 0]
    assert not any(one.changes or one.fill for one in found.bookings)


def test_options_that_end_and_shares_at_the_strike() -> None:
    contract = "AAPL230721C00150000"
    found = read(
        other("OPEXP", symbol=contract, qty="-2"),
        other("OPASN", symbol=contract, qty="2"),
        other("OPEXC", symbol=contract, qty="-2"),
        other("OPTRD", symbol="AAPL", qty="200", price="90", net_amount="-30000"),
        other("OPTRD", id="s", symbol="AAPL", qty="-200", price="150"),
        other("SPLIT", symbol="AAPL", qty="20"),
    )
    fills = [one.fill and (one.fill.symbol, one.fill.qty, one.fill.price) for one in found.bookings]
    assert fills == [
        (contract, -2, 0),
        (contract, 2, 0),
        (contract, -2, 0),
        ("AAPL", 200, 150),
        ("AAPL", -200, 150),
        None,
    ]
    assert [one.changes for one in found.bookings] == [None] * 5 + ["AAPL"]
    assert not any(one.amount for one in found.bookings)


def test_an_account_in_euros_is_read_in_dollars() -> None:
    found = read(
        fill(1, price="156.77", swap_rate="0.5"),
        fill(2, price="156.77", usd={"price": "157.59"}, swap_rate="0.9947"),
        fill(3, symbol="MSFT"),
        other("FEE", net_amount="-0.10", swap_rate="0.5"),
        other("FEE", id="b", net_amount="-0.10"),
        currency="EUR",
    )
    assert [one.price for one in found.fills] == [D("313.54"), D("157.59")]
    assert [(one.changes, one.fee) for one in found.bookings] == [
        ("MSFT", 0),
        (None, D("0.2")),
        (None, None),
    ]


@pytest.mark.parametrize("date", ["2026-13-20", "2026-02-30", "0001-01-01", "9999-12-31", "x"])
def test_a_date_that_no_calendar_has_is_no_date(date: str) -> None:
    row = other("CFEE", symbol="BTC/USD", qty="-0.1", price="100", date=date, net_amount="0")
    (found,) = read(row).bookings
    assert (found.date, found.fill.at_ns) == ("", 0)


def test_a_broken_row_costs_itself() -> None:
    found = read(fill(1), "?", {"id": "x", "symbol": 7}, {"id": None}, fill(2))
    assert len(found.fills) == 2
    assert [one.activity_type for one in found.bookings] == ["UNREADABLE"]
    assert parse_activities(b"null", "here")[1] == []
    with pytest.raises(AccountUnavailable):
        parse_activities(b'{"message":"no"}', "here")


def test_the_account() -> None:
    body = {
        "id": "a",
        "currency": "USD",
        "equity": "100.5",
        "last_equity": 100,
        "cash": "-3",
        "long_market_value": "110",
        "short_market_value": "-6.5",
    }
    found = parse_account(json.dumps(body).encode(), "here")
    assert (found.equity, found.last_equity, found.cash) == (D("100.5"), 100, -3)
    assert found.positions_value == D("103.5")
    few = parse_account(b'{"equity":"?"}', "here")
    assert (few.currency, few.equity, few.positions_value) == ("USD", None, None)
    with pytest.raises(AccountUnavailable):
        parse_account(b"[]", "here")


async def test_pages_are_followed_to_the_end(autojump_clock: Any) -> None:
    rows = [fill(number) for number in range(251)]
    account = account_of(pages_of(rows))
    found = await account.fills(DATE)
    assert len(found.fills) == 251
    assert found.last_id == rows[-1]["id"]
    assert not (await account.fills(DATE, found.last_id)).fills
    assert len((await account_of(pages_of(rows, 20)).fills(DATE)).fills) == 251


async def test_a_server_without_pages_is_read_once(autojump_clock: Any) -> None:
    rows = [fill(1), other("FEE", net_amount="-1"), other("CSD", date="2026-11-19")]
    account = account_of(lambda _: httpx.Response(200, json=rows))
    assert len((await account.fills(DATE)).fills) == 1
    others = await account.others(DATE)
    assert [one.activity_type for one in others.bookings] == ["FEE"]
    assert not others.fills


async def test_a_refused_token_means_all_again(autojump_clock: Any) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.params.get("page_token") == "gone":
            return httpx.Response(422, json={"message": "invalid page_token"})
        return pages_of([fill(1)])(request)

    assert len((await account_of(answer).fills(DATE, "gone")).fills) == 1


async def test_what_is_asked(autojump_clock: Any) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=[])

    account = account_of(answer)
    await account.fills(DATE)
    await account.others(DATE)
    assert [dict(request.url.params) for request in asked] == [
        {
            "activity_types": "FILL",
            "after": "2026-11-20T04:59:59.999Z",
            "direction": "asc",
            "page_size": "100",
        },
        {
            "category": "non_trade_activity",
            "date": DATE,
            "direction": "asc",
            "page_size": "100",
        },
    ]
    assert asked[0].headers["APCA-API-KEY-ID"] == "key"
    assert asked[0].url.path == "/v2/account/activities"


async def test_the_pages_before_a_date_are_bounded(autojump_clock: Any) -> None:
    account = account_of(pages_of([fill(number) for number in range(500)]))
    assert [len(page.fills) async for page in account.before(DATE, 3)] == [100, 100, 100]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_server_is_asked_again(autojump_clock: Any, status: int) -> None:
    left = [status, status]

    def answer(_: httpx.Request) -> httpx.Response:
        if left:
            return httpx.Response(left.pop(), headers={"Retry-After": "2"})
        return httpx.Response(200, json=[])

    assert not (await account_of(answer).fills(DATE)).fills
    with pytest.raises(AccountUnavailable, match=str(status)):
        await account_of(lambda _: httpx.Response(status)).fills(DATE)


async def test_a_refusal_is_final(autojump_clock: Any) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(403)

    with pytest.raises(AccountRefused, match="403") as caught:
        await account_of(answer).account()
    assert len(asked) == 1
    assert "secret" not in str(caught.value)


def test_a_bad_url_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError):
        AlpacaAccount("nowhere", "key", "secret")
