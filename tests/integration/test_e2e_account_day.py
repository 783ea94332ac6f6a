"""The account through a day: simulator, service, Valkey and gateways, each its own process.

Every figure over HTTP is counted again from the simulator's records, with arithmetic of the test's
own. All programs share a clock, which the test sets.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import httpx
import pytest

from mdservice.simulator import Lose, crypto, options
from mdservice.simulator.crypto import SimPairQuote
from mdservice.simulator.options import SimOptionQuote
from mdservice.simulator.stocks import QUOTES
from mdservice.simulator.wire import SimQuote
from tests.integration.machine_clock import MachineClock

D = Decimal
CALL, PUT = "AAPL261218C00200000", "AAPL261218P00180000"
PNL, DAY, RISK = "/api/v1/positions/pnl/realtime", "/api/v1/account/pnl/day", "/api/v1/risk"
NEW_YORK = ZoneInfo("America/New_York")
BEFORE: Mapping[str, tuple[str, str]] = {
    "AAPL": ("100", "150.25"),
    "MSFT": ("-20", "431.2"),
    "KO": ("7.5", "60.1"),
    "BTC/USD": ("0.5", "60000"),
    CALL: ("2", "4.5"),
}
LIMITS = {
    "AAPL qty > 1000": ("AAPL", "qty", D(1000)),
    "KO value > 1000000": ("KO", "value", D(1_000_000)),
    "BTCUSD pnl < -1000000": ("BTCUSD", "pnl", D(-1_000_000)),
    "KO day_pnl < -1000000": ("KO", "day_pnl", D(-1_000_000)),
    "total pnl < -10000000": ("total", "pnl", D(-10_000_000)),
    "total exposure > 10000000": ("total", "exposure", D(10_000_000)),
}


def name_of(symbol: str) -> str:
    """As positions write it."""
    return symbol.replace("/", "")


def times(symbol: str) -> int:
    return 100 if len(symbol) > 15 else 1


@attrs.define
class Account:
    """The test's own count of one symbol.

    Attributes:
        qty: Held now.
        average: Entry price, to nine digits.
        lots: Quantity and price of each earlier day, the oldest first.
        added: What this day added since the position was last opened: quantity and cost.
        closed: What it took away since then.
    """

    qty: Decimal
    average: Decimal
    lots: list[tuple[Decimal, Decimal]]
    added: tuple[Decimal, Decimal] = (D(0), D(0))
    closed: Decimal = Decimal(0)
    start_qty: Decimal = Decimal(0)
    paid: Decimal = Decimal(0)
    realized: Decimal = Decimal(0)
    fills: int = 0

    def trade(self, qty: Decimal, price: Decimal, multiplier: int) -> None:
        self.fills += 1
        self.paid += qty * price * multiplier
        before, self.qty = self.qty, self.qty + qty
        if not before or (before > 0) == (qty > 0):
            self.average = round((before * self.average + qty * price) / self.qty, 9)
            self.added = self.added[0] + qty, self.added[1] + qty * price
            return
        gone = -qty if abs(qty) <= abs(before) else before
        self.realized += gone * (price - self.average) * multiplier
        self.closed += gone
        if not self.qty or (self.qty > 0) != (before > 0):
            self.average, self.lots, self.closed = price, [], Decimal(0)
            self.added = self.qty, self.qty * price

    def end_day(self) -> None:
        """Compressed FIFO: the day's purchases are one lot, the oldest are closed first."""
        if self.added[0]:
            self.lots.append((self.added[0], self.added[1] / self.added[0]))
        while self.closed:
            qty, price = self.lots.pop(0)
            gone = qty if abs(qty) <= abs(self.closed) else self.closed
            self.closed -= gone
            if qty != gone:
                self.lots.insert(0, (qty - gone, price))
        if self.qty:
            self.average = round(sum(qty * price for qty, price in self.lots) / self.qty, 9)
        self.start_qty = self.qty
        self.added, self.paid, self.realized = (D(0), D(0)), D(0), D(0)
        self.fills = 0


class Recount:
    """The account from the simulator's records: trades, fees, quotes and closes."""

    def __init__(self, simulator: Any) -> None:
        self.simulator = simulator
        self.accounts: dict[str, Account] = {}
        self.closes: dict[str, Decimal] = {}
        self.cash, self.fees = D(100_000), D(0)
        self._trades = self._activities = 0

    def catch_up(self) -> None:
        """Count what the simulator has recorded since."""
        trades = list(self.simulator.trades)
        for trade in trades[self._trades :]:
            account = self.accounts.setdefault(trade.symbol, Account(D(0), D(0), []))
            multiplier = times(trade.symbol)
            account.trade(trade.qty, trade.price, multiplier)
            self.cash -= trade.qty * trade.price * multiplier
        self._trades = len(trades)
        rows = [one.row for one in self.simulator.activities if one.activity_type == "FEE"]
        for row in rows[self._activities :]:
            self.cash += D(row["net_amount"])
            self.fees -= D(row["net_amount"])
        self._activities = len(rows)
        assert self.simulator.balances.cash == self.cash
        for held in self.simulator.positions:
            account = self.accounts[held.symbol]
            assert held.qty == account.qty
            assert close_to(held.avg_entry_price, account.average)

    fees = Decimal(0)

    def end_day(self) -> None:
        self.catch_up()
        for symbol, account in self.accounts.items():
            account.end_day()
            if account.qty:
                self.closes[name_of(symbol)] = self.price(symbol)
        self.fees = Decimal(0)

    def price(self, symbol: str) -> Decimal:
        """The mid of the last quote that has both sides."""
        kind = crypto.QUOTES if "/" in symbol else options.QUOTES if times(symbol) > 1 else QUOTES
        last = [
            quote
            for quote in self.simulator.history_of(kind)
            if quote.symbol == symbol and quote.bid and quote.ask
        ][-1]
        return (D(str(last.bid)) + D(str(last.ask))) / 2

    def day_pnl(self, symbol: str) -> Decimal:
        """What the symbol is worth now, less its value at the last close and what was paid."""
        account, multiplier = self.accounts[symbol], times(symbol)
        now = account.qty * self.price(symbol) if account.qty else D(0)
        close = account.start_qty * self.closes[name_of(symbol)] if account.start_qty else D(0)
        return (now - close) * multiplier - account.paid

    def rows(self) -> dict[str, dict[str, Any]]:
        found = {}
        for symbol, account in self.accounts.items():
            if not account.qty:
                continue
            price, multiplier, name = self.price(symbol), times(symbol), name_of(symbol)
            value = account.qty * price * multiplier
            cost = account.qty * account.average * multiplier
            found[name] = {
                "symbol": name,
                "qty": account.qty,
                "avg_entry_price": account.average,
                "current_price": price,
                "unrealized_pnl": value - cost,
                "unrealized_pnl_pct": round((value - cost) / abs(cost) * 100, 4),
                "asset_class": (
                    "crypto" if "/" in symbol else "us_option" if multiplier > 1 else "us_equity"
                ),
                "multiplier": multiplier,
                "market_value": value,
                "day_pnl": self.day_pnl(symbol),
            }
        return found

    def totals(self) -> dict[str, Any]:
        rows = self.rows().values()
        return {
            "total_unrealized_pnl": sum(row["unrealized_pnl"] for row in rows),
            "total_market_value": sum(row["market_value"] for row in rows),
            "total_day_pnl": sum(row["day_pnl"] for row in rows),
            "realized_day_pnl": sum(account.realized for account in self.accounts.values()),
            "priced": len(rows),
            "unpriced": 0,
        }

    def of_day(self) -> dict[str, Any]:
        balances = self.simulator.balances
        realized = sum(account.realized for account in self.accounts.values())
        total = balances.exact_equity - balances.last_equity
        assert total == sum(map(self.day_pnl, self.accounts)) - self.fees
        return {
            "realized_pnl": realized,
            "fees": self.fees,
            "total": total,
            "unrealized_change": total - realized + self.fees,
        }

    def of_symbols(self) -> dict[str, tuple[Decimal, int, Decimal]]:
        return {
            name_of(symbol): (account.realized, account.fills, account.qty)
            for symbol, account in self.accounts.items()
            if account.fills
        }

    def of_limits(self) -> dict[str, dict[str, Any]]:
        rows = self.rows()
        found = {}
        for rule, (subject, measure, limit) in LIMITS.items():
            if measure == "exposure":
                value = sum(abs(row["market_value"]) for row in rows.values())
            elif subject == "total":
                value = self.totals()["total_unrealized_pnl"]
            else:
                row = rows[subject]
                value = {
                    "qty": row["qty"],
                    "value": abs(row["market_value"]),
                    "pnl": row["unrealized_pnl"],
                    "day_pnl": row["day_pnl"],
                }[measure]
            used = max(D(0), value / limit)
            found[rule] = {"rule": rule, "subject": subject, "value": value, "used": used}
        return found


def close_to(one: Any, other: Any) -> bool:
    """Equal, to the nine digits of an average price."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(map(close_to, one, other))
    if isinstance(one, (int, Decimal)) and isinstance(other, (int, Decimal)):
        return abs(D(one) - D(other)) <= D("1e-6")
    return bool(one == other)


def compare(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for name, value in wanted.items():
        if not close_to(found.get(name), value):
            yield f"{what} {name}: {found.get(name)} in the place of {value}"


class Rig:
    """Everything that runs, and what is asked of it."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.clock = MachineClock(stage.folder(), "2026-11-19T15:00:00-05:00")
        self.simulator = stage.simulator(
            clock=self.clock,
            sale_fee="0.0000278",
            rest_rate_limit=None,
        )
        self.recount = Recount(self.simulator)
        self.valkey = stage.valkey()
        self.http = httpx.Client(timeout=30)
        stage.defer(self.http.close)
        self.fastest_fill_s = float("inf")
        self.marks: dict[str, str] = {}
        """Of positions whose price is not the mid of a quote."""

    def start(self, positions_interval: str) -> None:
        """Start the service, a gateway with the same settings, and one that asks the service."""
        env = self.stage.account(
            self.simulator,
            self.valkey,
            MDSERVICE_CHANNELS="quotes,statuses",
            MDSERVICE_LIMITS="; ".join(LIMITS),
            MDSERVICE_POSITIONS_INTERVAL=positions_interval,
            MDSERVICE_STALE_AFTER="600",
            **self.clock.env,
        )
        self.service = self.stage.program("run", MDSERVICE_POSITIONS="alpaca", **env)
        self.service.wait_ready()
        self.gateways: dict[str, tuple[str, Any]] = {}
        for name, more in (
            ("follows Alpaca", {"MDSERVICE_POSITIONS": "alpaca"}),
            # What the service has reconciled comes with the next answer to the gateway.
            ("follows the service", {"MDSERVICE_POSITIONS_INTERVAL": "1"}),
        ):
            address = f"127.0.0.1:{self.stage.free_port()}"
            program = self.stage.program(
                "gateway",
                folder=self.service.folder,
                **{**env, "MDSERVICE_GATEWAY_HTTP": address, **more},
            )
            self.gateways[name] = f"http://{address}", program

    def end(self, by: signal.Signals) -> None:
        for _, program in self.gateways.values():
            program.end(by)
        self.service.end(by)

    def end_day(self) -> None:
        self.recount.end_day()
        self.simulator.end_day()

    def quote(self, **quotes: tuple[float, float]) -> None:
        """Quotes of stocks."""
        self.simulator.send_quotes([SimQuote(s, *both) for s, both in quotes.items()])

    def quote_coin(self, bid: float, ask: float) -> None:
        self.simulator.send_records(crypto.QUOTES, [SimPairQuote("BTC/USD", bid, ask)])

    def quote_options(self, **quotes: tuple[float, float]) -> None:
        records = [SimOptionQuote(s, *both) for s, both in quotes.items()]
        self.simulator.send_records(options.QUOTES, records)

    def order(self, symbol: str, side: str, qty: str, **more: Any) -> str:
        body = {"symbol": symbol, "side": side, "qty": qty, "type": "market"}
        body["time_in_force"] = "gtc" if symbol.startswith("BTC") else "day"
        answer = self.http.post(f"{self.simulator.rest_url}/v2/orders", json={**body, **more})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def differences(self, statuses: Mapping[str, str], is_open: bool) -> list[str]:
        """What the gateways answer otherwise than the recount."""
        self.recount.catch_up()
        found = []
        for name, (url, program) in self.gateways.items():
            try:
                answers = [self.http.get(url + path) for path in (PNL, DAY, RISK)]
            except httpx.TransportError as exc:
                assert program.process.poll() is None, program.said
                found.append(f"{name}: {exc}")
                continue
            bad = [answer for answer in answers if answer.status_code != 200]
            found += [f"{name} {answer.url.path}: {answer.text}" for answer in bad]
            if not bad:
                texts = [self.stage.exact(answer.text) for answer in answers]
                found += [f"{name} {one}" for one in self._compare(*texts, statuses, is_open)]
        return found

    def _compare(
        self,
        pnl: dict[str, Any],
        day: dict[str, Any],
        risk: dict[str, Any],
        statuses: Mapping[str, str],
        is_open: bool,
    ) -> Iterator[str]:
        recount = self.recount
        rows = {row["symbol"]: row for row in pnl["positions"]}
        wanted = recount.rows()
        yield from compare("", {"symbols": sorted(rows)}, {"symbols": sorted(wanted)})
        for symbol in rows.keys() & wanted.keys():
            more = {
                "status": statuses.get(symbol, statuses["*"]),
                "mark": self.marks.get(symbol, "mid"),
            }
            yield from compare(symbol, rows[symbol], wanted[symbol] | more)
        yield from compare("totals", pnl, recount.totals())
        yield from compare("market", pnl["market"] or {}, {"is_open": is_open})
        yield from compare("day", day, recount.of_day())
        today = datetime.fromtimestamp(self.clock.utc_ns() / 1e9, NEW_YORK)
        yield from compare("day", day, {"date": f"{today:%Y-%m-%d}"})
        symbols = {
            row["symbol"]: (row["realized_pnl"], row["fills"], row["qty"])
            for row in day["symbols"]
            if row["fills"]
        }
        yield from compare("day", symbols, recount.of_symbols())
        limits = {
            one["rule"]: {**one, "subject": name_of(one["subject"])} for one in risk["limits"]
        }
        blind = {symbol for symbol, status in statuses.items() if status == "stale"}
        for rule, limit in recount.of_limits().items():
            if blind and limit["subject"] == "total":
                limit |= {"value": None, "used": None}
            if limit["subject"] not in blind:
                yield from compare(f"limit {rule}", limits.get(rule, {}), limit)
        yield from compare("breaker", risk["breaker"], {"state": "closed"})
        named = {name_of(text.partition(":")[0]) for text in risk["blind"]}
        yield from compare("risk", {"blind": named}, {"blind": blind})

    def agree(self, is_open: bool = True, **statuses: str) -> None:
        """Wait until every figure of every gateway equals the recount."""
        statuses.setdefault("*", "live")
        self.stage.eventually(
            lambda: not self.differences(statuses, is_open),
            within=30,
            what=lambda: "\n".join(self.differences(statuses, is_open)),
        )

    def shown(self, symbol: str, qty: str) -> bool:
        """Whether every gateway shows so much of it."""
        for url, _ in self.gateways.values():
            rows = self.stage.exact(self.http.get(url + PNL).text)["positions"]
            held = {row["symbol"]: row["qty"] for row in rows}
            if held.get(symbol, 0) != D(qty):
                return False
        return True

    def other_quantities(self) -> list[str]:
        """Positions of the gateways that the recount has otherwise."""
        self.recount.catch_up()
        wanted = {symbol: row["qty"] for symbol, row in self.recount.rows().items()}
        found = []
        for name, (url, _) in self.gateways.items():
            rows = self.stage.exact(self.http.get(url + PNL).text)["positions"]
            found += compare(name, {row["symbol"]: row["qty"] for row in rows}, wanted)
        return found

    def fill(self, make: Callable[[], Any], symbol: str, qty: str) -> None:
        """Let something be filled, and wait until the gateways show the position."""
        make()
        since = time.monotonic()
        self.stage.eventually(
            lambda: self.shown(symbol, qty), what=lambda: self.differences({"*": "live"}, True)
        )
        self.fastest_fill_s = min(self.fastest_fill_s, time.monotonic() - since)

    def warned(self, symbol: str) -> None:
        """Wait until the gateway that follows Alpaca names the symbol in its warnings."""
        url, _ = self.gateways["follows Alpaca"]
        self.stage.eventually(
            lambda: symbol in str(self.stage.exact(self.http.get(url + PNL).text).get("warnings"))
        )

    def halt(self, symbol: str) -> None:
        """Halt a stock, and wait until that is in Redis."""

        def is_followed() -> bool:
            return any(
                symbol in connection.subscriptions.get("statuses", ())
                for connection in self.simulator.connections
            )

        self.stage.eventually(is_followed)
        self.simulator.halt(symbol)
        with self.valkey.client() as client:
            self.stage.eventually(lambda: client.get(f"trading_status:{symbol}"))


@pytest.fixture
def rig(stage: Any) -> Rig:
    return Rig(stage)


def test_every_figure_of_a_day_equals_a_recount(rig: Rig) -> None:
    simulator = rig.simulator
    # The day before.
    rig.quote(AAPL=(186, 186.2), MSFT=(431, 431.2), KO=(61.9, 62))
    rig.quote_coin(63_000, 63_001.5)
    rig.quote_options(**{CALL: (4.8, 5)})
    for symbol, (qty, price) in BEFORE.items():
        simulator.trade(symbol, qty, price)
    rig.end_day()

    # The open.
    rig.clock.set("2026-11-20T09:31:00-05:00")
    rig.quote(AAPL=(187.1, 187.16), MSFT=(428.5, 428.61), KO=(62.7, 62.72), NVDA=(178.4, 178.5))
    rig.quote_coin(64_000.5, 64_010.25)
    rig.quote_options(**{CALL: (5.1, 5.3), PUT: (3.05, 3.2)})
    rig.start(positions_interval="60")
    rig.agree()

    # Fills; the positions are asked for once a minute, so these come as events.
    rig.fill(lambda: rig.order("AAPL", "buy", "10"), "AAPL", "110")
    waiting = rig.order("AAPL", "sell", "30", type="limit", limit_price="190")
    rig.fill(lambda: simulator.fill_order(waiting, "12", "190.5"), "AAPL", "98")
    rig.fill(lambda: rig.quote(AAPL=(191.0, 191.1)), "AAPL", "80")
    rig.fill(lambda: rig.order("NVDA", "sell", "5"), "NVDA", "-5")
    rig.fill(lambda: simulator.trade("MSFT", 30, "428.55"), "MSFT", "10")
    rig.fill(lambda: rig.order("BTCUSD", "buy", "0.25"), "BTCUSD", "0.75")
    rig.fill(lambda: rig.order(CALL, "sell", "1"), CALL, "1")
    legs = [
        {"symbol": CALL, "ratio_qty": "1", "side": "buy"},
        {"symbol": PUT, "ratio_qty": "2", "side": "sell"},
    ]
    spread = {"order_class": "mleg", "qty": "3", "type": "market", "time_in_force": "day"}
    rig.fill(
        lambda: rig.http.post(f"{simulator.rest_url}/v2/orders", json={**spread, "legs": legs}),
        PUT,
        "-6",
    )
    rig.stage.eventually(lambda: rig.shown(CALL, "4"))  # a leg has an event of its own
    rig.fill(lambda: rig.order("KO", "sell", "7.5"), "KO", "0")
    rig.fill(lambda: rig.order("KO", "buy", "3"), "KO", "3")
    assert rig.fastest_fill_s < 1
    rig.agree()

    # Late and repeated updates.
    fills = [update for update in simulator.trade_updates if "position_qty" in update]
    for update in fills:
        simulator.send_trade_update(update)
    rig.fill(lambda: simulator.trade("NVDA", -1, "178"), "NVDA", "-6")
    assert not rig.other_quantities()

    # Lost ones.
    simulator.inject(Lose(2), feed="trading")
    simulator.trade("AAPL", 7, "190.25")
    rig.fill(lambda: simulator.trade("NVDA", 2, "178"), "NVDA", "-4")
    simulator.drop(feed="trading")
    rig.agree()
    rig.warned("AAPL")

    # A halt; everything else has new quotes.
    rig.halt("AAPL")
    rig.clock.set("2026-11-20T11:30:00-05:00")
    rig.quote(MSFT=(430, 430.25), KO=(62.5, 62.55), NVDA=(180, 180.1))
    rig.quote_coin(63_500, 63_505.5)
    rig.quote_options(**{CALL: (5.6, 5.8), PUT: (2.5, 2.65)})
    rig.agree(AAPL="stale")
    simulator.resume_trading("AAPL")
    rig.quote(AAPL=(189.5, 189.7))
    rig.agree()

    # The close, with a last quote without prices.
    simulator.simulator.market_open = False
    rig.clock.set("2026-11-20T16:45:00-05:00")
    rig.quote(NVDA=(0, 0))
    rig.quote_coin(63_800, 63_810)
    rig.agree(is_open=False, BTCUSD="live", **{"*": "closed"})

    # The night: new processes, and a Redis that has forgotten the prices.
    rig.end(signal.SIGKILL)
    rig.clock.set("2026-11-20T22:15:00-05:00")
    with rig.valkey.client() as client:
        client.flushall()
    rig.marks["NVDA"] = "previous"  # Alpaca's latest quote has no prices
    rig.start(positions_interval="0.2")
    rig.agree(is_open=False, BTCUSD="stale", **{"*": "closed"})
    rig.quote_coin(65_000, 65_001)
    rig.agree(is_open=False, BTCUSD="live", **{"*": "closed"})
    rig.fill(lambda: simulator.trade("BTCUSD", "-0.125", "65000.5"), "BTCUSD", "0.625")
    rig.agree(is_open=False, BTCUSD="live", **{"*": "closed"})

    # The next day, which begins at night.
    rig.end_day()
    rig.clock.set("2026-11-23T08:00:00-05:00")
    rig.quote_coin(65_500, 65_502)
    rig.agree(is_open=False, BTCUSD="live", **{"*": "closed"})

    # The next open.
    rig.clock.set("2026-11-23T09:31:00-05:00")
    simulator.simulator.market_open = True
    rig.marks.clear()
    rig.quote(AAPL=(192.1, 192.2), MSFT=(425, 425.5), KO=(61, 61.1), NVDA=(185, 185.25))
    rig.quote_coin(66_000, 66_010)
    rig.quote_options(**{CALL: (6.1, 6.3), PUT: (2.1, 2.2)})
    rig.agree()
    rig.fill(lambda: rig.order("AAPL", "sell", "50"), "AAPL", "37")
    rig.fill(lambda: rig.order("MSFT", "sell", "10"), "MSFT", "0")
    rig.fill(lambda: simulator.trade("NVDA", 10, "185.1"), "NVDA", "6")
    rig.agree()
    for _, program in rig.gateways.values():
        assert program.end() == 0
    assert rig.service.end() == 0
