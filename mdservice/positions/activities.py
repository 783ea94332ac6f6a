"""The account at Alpaca's trading API: its balances, its fills, and what else changed it.

Source: Alpaca, trading API, ``GET /v2/account`` and ``GET /v2/account/activities``; "Crypto fees"
for ``CFEE``; "Non-trade activities for option events" for ``OPEXP``, ``OPASN``, ``OPEXC`` and
``OPTRD``; "Local currency trading" for ``usd`` and ``swap_rate``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import date as Date  # noqa: N812 - arguments are named date
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

import anyio
import attrs
import msgspec

from mdservice.errors import AccountRefused, AccountUnavailable, ConfigurationError
from mdservice.model.timestamps import format_short_ns, parse_rfc3339
from mdservice.observability.masking import mask_url
from mdservice.pnl.day import Booking, Fill, midnight_ns, new_york_date
from mdservice.pnl.numbers import ZERO, sums_up
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.network import HttpAnswer, HttpClient, HttpFailed
from mdservice.settings.parsers import parse_url

__all__ = ["FEES", "Account", "Activities", "AlpacaAccount", "parse_account", "parse_activities"]

FEES: Final = frozenset(("FEE", "CFEE", "DIVFEE", "PTC"))
"""Activities that charge something: fees in dollars and in coins, of dividends, and passed on."""

_ENDS_OPTION: Final = frozenset(("OPEXP", "OPASN", "OPEXC", "OPXRC"))
"""Contracts that are gone without a price: expired, assigned, exercised."""
_AT_STRIKE: Final = "OPTRD"
_PAID_FOR_SHARES: Final = ("DIV", "INT")
"""Activities whose quantity is what they were paid for, not a change of it."""
_FILL: Final = "FILL"
_CANCELED: Final = "canceled"
_PAGE: Final = 100
_MOST_PAGES: Final = 1_000
"""Of one day: 100,000 activities."""
_MOST_BYTES: Final = 16 * 1024 * 1024
_TIMEOUT_S: Final = 9.0
_TRIES: Final = 3
_FIRST_S, _LIMIT_S = 0.5, 5.0
_LONGEST_WAIT_S: Final = 60.0
_OK, _NO_CONTENT, _TOO_MANY, _SERVER_ERROR = 200, 204, 429, 500
_BUSY: Final = (408, 425, _TOO_MANY)
_REFUSED_TOKEN: Final = (400, 404, 422)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_YEARS: Final = range(1970, 9999)
"""Of a date whose midnights are times."""
_DOLLARS: Final = "USD"
_divide = Context(prec=60, rounding=ROUND_HALF_EVEN).divide
_NULL: Final = msgspec.Raw(b"null")
_CHECK: Final = "check ALPACA_API_KEY, ALPACA_SECRET_KEY and MDSERVICE_TRADING_URL"


@attrs.frozen
class Account:
    """The balances of the account, in its own currency; None for what is missing.

    Attributes:
        id: Alpaca's.
        currency: ``USD``, or that of a local-currency account.
        equity: Cash and positions.
        last_equity: The equity at the last close.
        cash: Below 0 for a debt.
        positions_value: What the positions are worth, short ones below 0.
    """

    id: str
    currency: str
    equity: Decimal | None
    last_equity: Decimal | None
    cash: Decimal | None
    positions_value: Decimal | None


@attrs.define
class Activities:
    """Activities in the order of the list.

    Attributes:
        fills: The trades.
        bookings: The others.
        last_id: The id of the last one; empty without any.
        whole: Whether they are all, and not only those after a known one.
    """

    fills: list[Fill] = attrs.Factory(list)
    bookings: list[Booking] = attrs.Factory(list)
    last_id: str = ""
    whole: bool = True

    def extend(self, more: Activities) -> None:
        """Append those of the next page."""
        self.fills += more.fills
        self.bookings += more.bookings
        self.last_id = more.last_id or self.last_id


class _Usd(msgspec.Struct):
    price: msgspec.Raw = _NULL
    net_amount: msgspec.Raw = _NULL


class _Row(msgspec.Struct):
    """``{"activity_type":"FILL","qty":"1","price":"1.63","side":"buy",…}``."""

    id: str
    activity_type: str = _FILL
    transaction_time: str | None = None
    date: str | None = None
    status: str | None = None
    symbol: str | None = None
    side: str | None = None
    qty: msgspec.Raw = _NULL
    price: msgspec.Raw = _NULL
    net_amount: msgspec.Raw = _NULL
    swap_rate: msgspec.Raw = _NULL
    usd: _Usd | None = None


class _Balances(msgspec.Struct):
    id: str | None = None
    account_number: str | None = None
    currency: str | None = None
    equity: msgspec.Raw = _NULL
    last_equity: msgspec.Raw = _NULL
    cash: msgspec.Raw = _NULL
    long_market_value: msgspec.Raw = _NULL
    short_market_value: msgspec.Raw = _NULL


class _Id(msgspec.Struct):
    id: str


_rows = msgspec.json.Decoder(list[msgspec.Raw] | None)
_row = msgspec.json.Decoder(_Row)
_id = msgspec.json.Decoder(_Id)


class AlpacaAccount:
    """Asks for the balances and the activities of the account.

    Each call raises :class:`~mdservice.errors.AccountUnavailable` if there is no usable answer, and
    :class:`~mdservice.errors.AccountRefused` if the account must be looked at by a person. A busy
    or broken server is asked up to three times, after the wait that it names.

    Args:
        trading_url: ``https://paper-api.alpaca.markets``; a ``/v2`` at its end is accepted.
        api_key: Never shown.
        secret_key: Never shown.
        http: A client shared with other parts and closed by its owner; by default its own.

    Raises:
        ConfigurationError: The URL, a proxy or a certificate file is unusable.
    """

    def __init__(
        self, trading_url: str, api_key: str, secret_key: str, http: HttpClient | None = None
    ) -> None:
        try:
            parse_url(trading_url, "http", "https")
        except ValueError as exc:
            raise ConfigurationError(f"the trading URL {exc}") from None
        self._url = f"{trading_url.rstrip('/').removesuffix('/v2')}/v2/account"
        self.address = mask_url(self._url)
        self._headers = {"APCA-API-KEY-ID": api_key, "APCA-API-SECRET-KEY": secret_key}
        self._own_http = HttpClient() if http is None else None
        self._http = http or self._own_http or HttpClient()
        self._http.prepare(self._url)
        self._currency = _DOLLARS

    async def account(self) -> Account:
        """The balances now. The activities are read in the currency that it was the last time."""
        found = parse_account((await self._get(self._url, None)).body, self.address)
        self._currency = found.currency
        return found

    async def fills(self, date: str, token: str = "") -> Activities:
        """The fills of that date in New York, the oldest first; other dates may be among them.

        Args:
            date: ``2026-11-20``.
            token: The id of the last one that is known: only those after it are asked for.
        """
        params = {
            "activity_types": _FILL,
            "after": format_short_ns(midnight_ns(date) - 1_000_000),
            "direction": "asc",
        }
        if not token:
            return await self._all(params)
        try:
            return attrs.evolve(await self._all(params, token), whole=False)
        except AccountRefused as exc:
            if exc.status not in _REFUSED_TOKEN:
                raise
            return await self._all(params)

    async def others(self, date: str) -> Activities:
        """The activities of that date that are not trades."""
        params = {"category": "non_trade_activity", "date": date, "direction": "asc"}
        found = await self._all(params)
        # A server that knows neither categories nor dates answers with more.
        bookings = [each for each in found.bookings if each.date in ("", date)]
        return Activities([], bookings, found.last_id)

    async def before(self, date: str, pages: int) -> AsyncGenerator[Activities, None]:
        """The pages of activities before that date, the newest first."""
        params = {"until": format_short_ns(midnight_ns(date)), "direction": "desc"}
        async with aclosing(self._pages(params, pages=pages)) as found:
            async for page in found:
                yield page

    async def aclose(self) -> None:
        """Close all connections; a later call opens new ones."""
        if self._own_http is not None:
            await self._own_http.aclose()

    async def _all(self, params: Mapping[str, str], token: str = "") -> Activities:
        found = Activities()
        count = 0
        async with aclosing(self._pages(params, token)) as pages:
            async for page in pages:
                found.extend(page)
                count += 1
        if count == _MOST_PAGES:
            raise AccountRefused(f"{self.address} has too many activities for one day", _OK)
        return found

    async def _pages(
        self, params: Mapping[str, str], token: str = "", pages: int = _MOST_PAGES
    ) -> AsyncGenerator[Activities, None]:
        seen = {token}
        for _ in range(pages):
            asked = {**params, "page_size": str(_PAGE)} | ({"page_token": token} if token else {})
            answer = await self._get(f"{self._url}/activities", asked)
            page, ids = parse_activities(answer.body, self.address, self._currency)
            # A server that knows no tokens answers with the same page again.
            if seen.issuperset(ids):
                return
            seen.update(ids)
            token = ids[-1]
            yield page

    async def _get(self, url: str, params: Mapping[str, str] | None) -> HttpAnswer:
        backoff = Backoff(_FIRST_S, _LIMIT_S)
        tries_left = _TRIES
        while True:
            tries_left -= 1
            try:
                answer = await self._http.get(
                    url,
                    params=params,
                    headers={"Accept": "application/json", **self._headers},
                    timeout_s=_TIMEOUT_S,
                    most_bytes=_MOST_BYTES,
                    ask_twice=True,
                )
            except HttpFailed as exc:
                if exc.kind == "url":
                    raise AccountRefused(f"{self.address} cannot be asked: {_CHECK}", 0) from exc
                if not tries_left:
                    raise AccountUnavailable(f"{self.address}: {exc}") from exc
                await anyio.sleep(backoff.next_s())
                continue
            if answer.status == _OK:
                return answer
            if answer.status == _NO_CONTENT:
                return attrs.evolve(answer, body=b"null")
            if answer.status < _SERVER_ERROR and answer.status not in _BUSY:
                raise AccountRefused(
                    f"{self.address} answers HTTP {answer.status}: {_CHECK}", answer.status
                )
            if not tries_left:
                raise AccountUnavailable(
                    f"{self.address} answers HTTP {answer.status}; worth another try"
                )
            await anyio.sleep(_wait_s(answer) or backoff.next_s())


def _wait_s(answer: HttpAnswer) -> float | None:
    """The wait that a busy server names, at most a minute."""
    text = answer.headers.get("Retry-After", "")
    return min(float(text), _LONGEST_WAIT_S) if text.isdecimal() else None


def parse_account(body: bytes, where: str) -> Account:
    """The balances; missing and unreadable ones are None.

    Raises:
        AccountUnavailable: It is not a JSON object.
    """
    try:
        found = msgspec.json.decode(body, type=_Balances)
    except (ValueError, RecursionError) as exc:
        raise AccountUnavailable(f"{where} does not answer with an account") from exc
    long, short = _number(found.long_market_value), _number(found.short_market_value)
    value = None if long is None or short is None else long - abs(short)
    return Account(
        found.id or found.account_number or "",
        (found.currency or _DOLLARS).upper(),
        _number(found.equity),
        _number(found.last_equity),
        _number(found.cash),
        value,
    )


def parse_activities(
    body: bytes, where: str, currency: str = _DOLLARS
) -> tuple[Activities, Sequence[str]]:
    """A page of activities, and the ids of its rows; ``null`` is an empty page.

    A row that cannot be read costs only itself: the P&L of its symbol is not known then. Amounts
    in another currency than dollars are read from the row's ``usd`` block, or converted at its
    ``swap_rate``; with neither, they are unreadable.

    Args:
        body: A JSON list, or ``null``.
        where: The name of the content in errors.
        currency: That of the account.

    Raises:
        AccountUnavailable: It is not a JSON list.
    """
    try:
        rows = _rows.decode(body) or []
    except (ValueError, RecursionError) as exc:
        raise AccountUnavailable(f"{where}/activities does not answer with a list") from exc
    found, ids = Activities(), []
    for raw in rows:
        try:
            row = _row.decode(raw)
        except (ValueError, RecursionError):
            try:
                ids.append(_id.decode(raw).id)
            except (ValueError, RecursionError):
                continue
            found.bookings.append(Booking(ids[-1], "UNREADABLE", fee=None))
            continue
        ids.append(row.id)
        if row.status == _CANCELED:
            continue
        if row.activity_type == _FILL:
            fill = _fill(row, currency)
            if fill is not None:
                found.fills.append(fill)
            elif row.symbol:
                booking = Booking(row.id, "an unreadable FILL", _date(row), changes=row.symbol)
                found.bookings.append(booking)
        else:
            found.bookings.append(_booking(row, currency))
    found.last_id = ids[-1] if ids else ""
    return found, ids


def _fill(row: _Row, currency: str) -> Fill | None:
    qty, price = _number(row.qty), _price(row, currency)
    side = (row.side or "").lower().rpartition(".")[2]
    at_ns = _time(row)
    if not row.symbol or not qty or price is None or at_ns is None:
        return None
    if not side.startswith(("buy", "sell")):
        return None
    qty = abs(qty)
    return Fill(row.symbol, -qty if side.startswith("sell") else qty, price, at_ns, row.id)


def _booking(row: _Row, currency: str) -> Booking:
    kind, symbol, qty = row.activity_type, row.symbol, _number(row.qty)
    amount, plain = _amount(row, currency), Booking(row.id, row.activity_type, _date(row))
    if kind in FEES:
        fee = None if amount is None else ZERO - amount
        if kind != "CFEE" or not symbol or not qty:
            return attrs.evolve(plain, fee=fee)
        # A fee in coins: as if they were sold at that price, and the dollars were the fee.
        price = _price(row, currency) or ZERO
        fee = None if fee is None else fee - qty * price
        coins = Fill(symbol, qty, price, _end_ns(row), row.id, realizes=False)
        return attrs.evolve(plain, fee=fee, fill=coins)
    plain = attrs.evolve(plain, amount=amount or ZERO)
    if not symbol or not qty or kind.startswith(_PAID_FOR_SHARES):
        return plain
    if kind in _ENDS_OPTION:
        return attrs.evolve(plain, fill=Fill(symbol, qty, ZERO, _end_ns(row), row.id))
    if kind == _AT_STRIKE:
        strike = ZERO - _divide(amount, qty) if amount else _price(row, currency)
        if strike is not None:
            fill = Fill(symbol, qty, strike, _end_ns(row), row.id)
            return attrs.evolve(plain, amount=ZERO, fill=fill)
    return attrs.evolve(plain, changes=symbol)


def _date(row: _Row) -> str:
    text = (row.date or "")[:10]
    with suppress(ValueError):  # a date that no calendar has
        if _DATE.fullmatch(text) and Date.fromisoformat(text).year in _YEARS:
            return text
    at_ns = _time(row)
    return "" if at_ns is None else new_york_date(at_ns)


def _time(row: _Row) -> int | None:
    try:
        return parse_rfc3339(row.transaction_time or "")
    except ValueError:
        return None


def _end_ns(row: _Row) -> int:
    """The time of an activity; without one the end of its date, when Alpaca posts it."""
    at_ns, date = _time(row), _date(row)
    if at_ns is None:
        return midnight_ns(date, 1) - 1 if date else 0
    return at_ns


def _price(row: _Row, currency: str) -> Decimal | None:
    return _in_dollars(row, row.price, None if row.usd is None else row.usd.price, currency)


def _amount(row: _Row, currency: str) -> Decimal | None:
    if bytes(row.net_amount) in {b"null", b'""'}:
        return ZERO
    usd = None if row.usd is None else row.usd.net_amount
    return _in_dollars(row, row.net_amount, usd, currency)


def _in_dollars(
    row: _Row, raw: msgspec.Raw, usd: msgspec.Raw | None, currency: str
) -> Decimal | None:
    if usd is not None and (dollars := _number(usd)) is not None:
        return dollars
    number, rate = _number(raw), _number(row.swap_rate)
    if number is None or (rate is None and currency == _DOLLARS) or number == 0:
        return number
    return _divide(number, rate) if rate else None


def _number(raw: msgspec.Raw) -> Decimal | None:
    try:
        number = msgspec.json.decode(raw, type=Decimal | None)
    except ValueError:
        return None
    return number if number is not None and sums_up(number) else None
