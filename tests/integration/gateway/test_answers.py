"""What the mounted router answers: real FastAPI, real Valkey, both event loops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

import anyio
import attrs
import pytest
from pydantic import BaseModel

from mdservice.errors import ConfigurationError, PositionsUnavailable
from mdservice.gateway import pnl_router
from mdservice.gateway.router import Answers, PnlAnswer
from mdservice.model.position import Position
from mdservice.positions import cache, sources
from mdservice.settings import Settings
from mdservice.testing import FakePositions
from tests.integration.conftest import patient
from tests.integration.gateway.conftest import PNL, Gateway, exact, open_gateway

Run = Callable[..., None]


def held(symbol: str, qty: str = "10", price: str = "150.00", **more: Any) -> Position:
    return Position(symbol, Decimal(qty), Decimal(price), **more)


class Indexed:
    """An integer of another library."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


class Floating:
    """A float of another library."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return self._value


class Tuple(NamedTuple):
    symbol: str
    qty: int
    avg_entry_price: int


def test_the_answer_is_the_contracts(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        quote = gateway.write(gateway.quote("AAPL", 187.12, 187.15))
        answer = await gateway.http.get(PNL)
        assert answer.headers["content-type"] == "application/json"
        assert answer.text == (
            '{"positions":[{"symbol":"AAPL","qty":10,"avg_entry_price":150.00,'
            '"asset_class":"us_equity","multiplier":1,'
            '"current_price":187.135,"unrealized_pnl":371.35,"unrealized_pnl_pct":24.7567,'
            '"market_value":1871.35,"day_pnl":null,'
            f'"last_updated":"{quote.timestamp}","mark":"mid","status":"live"}}],'
            '"total_unrealized_pnl":371.35,"total_market_value":1871.35,"total_day_pnl":null,'
            '"realized_day_pnl":null,"market":null,"priced":1,"unpriced":0}'
        )
        PnlAnswer.model_validate_json(answer.text)

    run(body, FakePositions([held("AAPL")]))


@pytest.mark.parametrize("lifespan", [True, False])
def test_no_position_is_left_out(run: Run, lifespan: bool) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 100, 101))
        gateway.write(gateway.quote("OLD", 10, 10, age_s=61))
        gateway.write(gateway.quote("NONE", 0, 0))
        found = await gateway.pnl()
        told = {row["symbol"]: (row["status"], row["unrealized_pnl"]) for row in found["positions"]}
        assert told == {
            "AAPL": ("live", Decimal(-495)),
            "OLD": ("stale", Decimal(-1400)),
            "NONE": ("unpriced", None),
            "GONE": ("unpriced", None),
            "?!": ("unpriced", None),
        }
        assert (found["priced"], found["unpriced"]) == (2, 3)
        assert found["total_unrealized_pnl"] == Decimal(-1895)
        problems = [row.get("problem") for row in found["positions"]]
        assert problems == [None, None, None, None, "has no valid symbol"]

    symbols = [held("AAPL"), held("OLD"), held("NONE"), held("GONE")]
    source = FakePositions([*symbols, held("?!", problem="has no valid symbol")])
    run(body, source, lifespan=lifespan)


UNUSABLE = [(0.0, 0.0), (0.05, 199_999.99)]


@pytest.mark.parametrize("read_from", ["keys", "live"])
@pytest.mark.parametrize("sides", UNUSABLE)
def test_a_quote_that_is_no_price_leaves_the_last_one(
    run: Run, sides: tuple[float, float], read_from: str
) -> None:
    async def body(gateway: Gateway) -> None:
        usable = gateway.write(gateway.quote("AAPL", 187.12, 187.15))
        await gateway.until(lambda found: found["priced"] == 1)
        gateway.write(gateway.quote("AAPL", *sides))
        found = await gateway.until(lambda found: found["positions"][0]["status"] == "stale")
        (row,) = found["positions"]
        assert (row["current_price"], row["last_updated"]) == (Decimal("187.135"), usable.timestamp)
        assert found["total_unrealized_pnl"] == Decimal("371.35")
        assert (found["priced"], found["unpriced"]) == (1, 0)
        gateway.source.set()
        await gateway.until(lambda found: found["positions"] == [])
        gateway.source.set(held("AAPL", "20"))
        found = await gateway.until(lambda found: found["positions"])
        assert found["total_unrealized_pnl"] == Decimal("742.7")
        assert found["positions"][0]["status"] == "stale"
        gateway.write(gateway.quote("AAPL", 151, 151))
        found = await gateway.until(lambda found: found["total_unrealized_pnl"] == 20)
        assert found["positions"][0]["status"] == "live"

    run(body, FakePositions([held("AAPL")]), read_from=read_from)


@pytest.mark.parametrize("lifespan", [True, False])
@pytest.mark.parametrize("sides", UNUSABLE)
def test_a_gateway_that_starts_at_night_has_the_price_of_the_positions_source(
    run: Run, sides: tuple[float, float], lifespan: bool
) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", *sides, age_s=3600))
        gateway.write(gateway.quote("MSFT", *sides, age_s=3600))
        found = await gateway.pnl()
        told = [(row["status"], row["current_price"]) for row in found["positions"]]
        assert told == [("stale", 160), ("unpriced", None)]
        assert found["total_unrealized_pnl"] == 100

    known = held("AAPL", current_price=Decimal(160))
    run(body, FakePositions([known, held("MSFT")]), lifespan=lifespan)


@pytest.mark.parametrize("read_from", ["keys", "live"])
@pytest.mark.parametrize("lifespan", [True, False])
def test_a_position_that_cannot_be_used_is_a_warning(
    run: Run, lifespan: bool, read_from: str
) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 160, 160))
        warned = await gateway.until(lambda found: "not priced" in str(found.get("warnings")))
        (warning,) = [each for each in warned["warnings"] if "not priced" in each]
        assert "B (has no qty)" in warning
        assert "C (qty is missing" in warning
        assert "AAPL" not in warning
        assert len(warned["positions"]) == 3
        many = [held(f"X{number}", problem="has no qty") for number in range(1_000)]
        gateway.source.set(*many)
        warned = await gateway.until(lambda found: len(found["positions"]) == len(many))
        (warning,) = [each for each in warned["warnings"] if "not priced" in each]
        assert "X0 (has no qty)" in warning
        assert len(warning) < 1_000
        gateway.source.set(held("AAPL"))
        await gateway.until(lambda found: "not priced" not in str(found.get("warnings")))

    rows = [
        held("AAPL"),
        held("B", problem="has no qty"),
        Position("C", None, Decimal(1)),
    ]
    run(body, FakePositions(rows), lifespan=lifespan, read_from=read_from)


def test_the_widest_spread_can_be_chosen(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 100, 200))
        assert (await gateway.pnl())["positions"][0]["status"] == "live"

    run(body, FakePositions([held("AAPL")]), max_spread=0)
    with pytest.raises(ConfigurationError, match="max_spread"):
        pnl_router(list, max_spread=-1)


async def test_the_stream_shows_that_a_price_is_stale_and_live_again(valkey: Any) -> None:
    async with open_gateway(valkey, FakePositions([held("AAPL")])) as gateway:
        gateway.write(gateway.quote("AAPL", 187.12, 187.15))
        await gateway.until(lambda found: found["priced"] == 1)
        done: list[bool] = []
        events = Answers(gateway.tracker).stream(lambda: bool(done))
        with anyio.fail_after(patient(30)):

            async def rows(status: str) -> tuple[str, Any, Any]:
                async for name, data in events:
                    found = exact(data)
                    if [row["status"] for row in found["positions"]] == [status]:
                        total = found["total_unrealized_pnl"]
                        return name, found["positions"][0]["current_price"], total
                raise AssertionError("the stream has ended")

            price, total = Decimal("187.135"), Decimal("371.35")
            assert await rows("live") == ("pnl", price, total)
            for sides in UNUSABLE:
                gateway.write(gateway.quote("AAPL", *sides))
                assert await rows("stale") == ("pnl.changed", price, total)
                gateway.write(gateway.quote("AAPL", 187.12, 187.15))
                assert await rows("live") == ("pnl.changed", price, total)
            done.append(True)
            async for _ in events:
                pass


def test_a_price_whose_key_has_expired_is_not_live(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        quote = gateway.write(gateway.quote("AAPL", 100, 101))
        assert (await gateway.pnl())["positions"][0]["status"] == "live"
        with gateway.valkey.client() as client:
            client.pexpire("price:AAPL", 1)
        found = await gateway.until(lambda found: found["positions"][0]["status"] != "live")
        (row,) = found["positions"]
        assert row["status"] == "stale"
        assert row["current_price"] == Decimal("100.5"), "the last known one"
        gateway.write(quote)
        assert (await gateway.pnl())["positions"][0]["status"] == "live"

    run(body, FakePositions([held("AAPL")]))


@pytest.mark.parametrize("read_from", ["keys", "live"])
def test_prices_and_positions_are_followed(run: Run, read_from: str) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 100, 100))
        await gateway.until(lambda found: found["priced"] == 1)
        gateway.write(gateway.quote("AAPL", 151, 151))
        await gateway.until(lambda found: found["total_unrealized_pnl"] == 10)
        gateway.source.set(held("AAPL", "-10"), held("AAPL", "1", "1"))
        found = await gateway.until(lambda found: found["priced"] == 2)
        assert found["total_unrealized_pnl"] == -10 + 150
        gateway.source.set()
        await gateway.until(lambda found: found["positions"] == [])

    run(body, FakePositions([held("AAPL")]), read_from=read_from)


def test_without_any_answer_of_the_source_nothing_is_made_up(run: Run) -> None:
    source = FakePositions([held("AAPL")])
    source.always = PositionsUnavailable("there is no file p.json; waiting for it")

    async def body(gateway: Gateway) -> None:
        told = await gateway.pnl(503)
        assert "there is no file p.json" in told["detail"]
        source.always = None
        while (await gateway.http.get(PNL)).status_code != 200:
            await anyio.sleep(0.02)

    run(body, source)


def test_a_source_that_fails_keeps_the_last_positions_and_is_reported(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 151, 151))
        await gateway.until(lambda found: found["priced"] == 1)
        gateway.source.always = PositionsUnavailable("the gateway is away")
        found = await gateway.until(lambda found: "warnings" in found)
        assert found["warnings"] == ["the positions are out of date: the gateway is away"]
        assert found["total_unrealized_pnl"] == 10
        gateway.source.always = None
        await gateway.until(lambda found: "warnings" not in found)

    run(body, FakePositions([held("AAPL")]))


@pytest.mark.parametrize("lifespan", [True, False])
def test_a_redis_that_is_away_leaves_the_last_prices_with_a_warning(
    run: Run, fresh_valkey: Any, lifespan: bool
) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.valkey = fresh_valkey
        gateway.write(gateway.quote("AAPL", 151, 151))
        await gateway.until(lambda found: found["priced"] == 1)
        fresh_valkey.kill()
        found = await gateway.until(lambda found: "warnings" in found)
        assert found["warnings"][0].startswith("the prices are out of date: ")
        assert found["total_unrealized_pnl"] == 10
        fresh_valkey.start()
        gateway.write(gateway.quote("AAPL", 152, 152))
        await gateway.until(
            lambda found: "warnings" not in found and found["total_unrealized_pnl"] == 20
        )

    # A server of its own, whose URL the router gets.
    run(
        body,
        FakePositions([held("AAPL")]),
        lifespan=lifespan,
        valkey_of_its_own=fresh_valkey,
    )


class Model(BaseModel):
    symbol: str
    qty: Decimal
    avg_entry_price: Decimal


@pytest.mark.parametrize(
    "row",
    [
        {"symbol": "aapl", "qty": "10", "avg_entry_price": Decimal("150.00")},
        {"symbol": "AAPL", "qty": 10, "avg_entry_price": 150.0, "unknown": object},
        {"symbol": "AAPL", "qty": 10, "avg_entry_price": "150", "side": "long"},
        Model(symbol="AAPL", qty=Decimal(10), avg_entry_price=Decimal(150)),
        held("AAPL"),
    ],
    ids=["strings", "numbers", "side", "pydantic", "position"],
)
def test_a_program_gives_its_positions_by_a_function(run: Run, row: Any) -> None:
    rows = [{name: v for name, v in row.items() if v is not object} if type(row) is dict else row]

    async def as_task() -> list[Any]:
        return rows

    for function in (lambda: rows, as_task, lambda: iter(rows)):

        async def body(gateway: Gateway) -> None:
            gateway.write(gateway.quote("AAPL", 187.12, 187.15))
            found = await gateway.pnl()
            assert found["total_unrealized_pnl"] == Decimal("371.35")

        run(body, function)


def test_a_function_is_asked_for_each_answer(run: Run) -> None:
    rows: list[dict[str, Any]] = []

    async def body(gateway: Gateway) -> None:
        for count in (0, 1, 2, 1):
            rows[:] = [{"symbol": "AAPL", "qty": 1, "avg_entry_price": 1}] * count
            assert len((await gateway.pnl())["positions"]) == count

    for lifespan in (True, False):
        run(body, lambda: rows, lifespan=lifespan)


def test_a_function_that_fails_is_reported(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        assert "ZeroDivisionError" in (await gateway.pnl(503))["detail"]

    run(body, lambda: 1 / 0)


def test_what_a_programs_error_says_is_not_shown_to_others(run: Run) -> None:
    def fail() -> list[Any]:
        raise OSError("could not connect to postgresql://me:hunter22@db/x")

    async def body(gateway: Gateway) -> None:
        assert "hunter22" not in str(await gateway.pnl(503))

    run(body, fail)


def test_a_function_that_hangs_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FETCH_LIMIT_S", 0.3)
    monkeypatch.setattr(cache, "PATIENCE_S", 0.2)
    hangs: list[bool] = []

    async def positions() -> list[Any]:
        if hangs:
            await anyio.sleep_forever()
        return [held("AAPL")]

    async def body(gateway: Gateway) -> None:
        assert "warnings" not in await gateway.pnl()
        hangs.append(True)
        found = await gateway.until(lambda found: "warnings" in found)
        assert [row["symbol"] for row in found["positions"]] == ["AAPL"]
        hangs.clear()
        await gateway.until(lambda found: "warnings" not in found)

    for lifespan in (True, False):
        run(body, positions, lifespan=lifespan)


def test_a_source_of_ones_own_that_is_broken_is_reported(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.source.script.append(None)
        await gateway.pnl()
        gateway.source.always = RuntimeError("hunter22")
        found = await gateway.until(lambda found: "warnings" in found)
        assert "RuntimeError" in found["warnings"][0]
        assert "hunter22" not in str(found)

    run(body, FakePositions([held("AAPL")]))


class Odd:
    """A row whose properties run code."""

    symbol = "ODD"
    qty = 1

    @property
    def avg_entry_price(self) -> Any:
        raise RuntimeError("detached")


@pytest.mark.parametrize(
    ("row", "qty"),
    [
        ({"symbol": "X", "qty": Fraction(1, 2), "avg_entry_price": 1}, Decimal("0.5")),
        ({"symbol": "X", "qty": Indexed(3), "avg_entry_price": Floating(1.5)}, 3),
        ({"symbol": "X", "qty": 2, "avg_entry_price": 1, "lock": threading.Lock()}, 2),
        (MappingProxyType({"symbol": "X", "qty": 2, "avg_entry_price": "1"}), 2),
        (Tuple("X", 2, 1), 2),
        (Position("X", Decimal(2), Decimal(1), problem="not mine"), 2),
        ({"symbol": "X", "qty": 10**5000, "avg_entry_price": 1}, None),
        ({"symbol": "\ud800", "qty": 1, "avg_entry_price": 1}, None),
        (Odd(), None),
        (object(), None),
        (None, None),
    ],
    ids=[
        "fraction",
        "numbers of another library",
        "a lock beside",
        "mapping",
        "named tuple",
        "with a problem",
        "huge",
        "no unicode",
        "a property that fails",
        "object",
        "none",
    ],
)
def test_an_odd_row_costs_itself_at_most(run: Run, row: Any, qty: Any) -> None:
    async def body(gateway: Gateway) -> None:
        gateway.write(gateway.quote("AAPL", 151, 151))
        gateway.write(gateway.quote("X", 3, 3))
        odd, good = (await gateway.pnl())["positions"]
        assert good["unrealized_pnl"] == 10
        assert odd["qty"] == qty
        unusable = qty is None or getattr(row, "problem", None) is not None
        assert (odd["status"] == "unpriced") == unusable

    run(body, lambda: [row, held("AAPL")], lifespan=False)


def test_an_event_that_overtakes_the_keys_is_not_taken_back(run: Run) -> None:
    async def body(gateway: Gateway) -> None:
        first = gateway.write(gateway.quote("AAPL", 100, 100))
        tracker = gateway.tracker
        await gateway.until(lambda found: found["priced"] == 1)
        prices = tracker._redis.prices

        async def slowly(symbols: Any) -> Any:
            found = await prices(symbols)
            gateway.write(attrs.evolve(first, bid=110, ask=110, seq=first.seq + 1))
            while tracker.engine.holding("AAPL").price != 110:
                await anyio.sleep(0.01)
            return found

        tracker._redis.prices = slowly
        (row,) = (await gateway.pnl())["positions"]
        assert row["current_price"] == 110

    run(body, FakePositions([held("AAPL")]))


def test_the_first_answer_waits_for_the_source(run: Run) -> None:
    source = FakePositions([held("AAPL")])
    source.delay_s = 0.3

    async def body(gateway: Gateway) -> None:
        assert len((await gateway.pnl())["positions"]) == 1

    run(body, source)


def test_without_redis_the_live_answers_have_a_warning(run: Run, fresh_valkey: Any) -> None:
    fresh_valkey.kill()

    async def body(gateway: Gateway) -> None:
        found = await gateway.until(lambda found: "warnings" in found)
        assert "prices are out of date" in found["warnings"][0]
        fresh_valkey.start()
        await gateway.until(lambda found: "warnings" not in found)

    run(body, FakePositions([held("AAPL")]), valkey_of_its_own=fresh_valkey, read_from="live")


@pytest.mark.parametrize(
    ("positions", "options", "named"),
    [
        ("nonsense", {}, "nonsense"),
        ("alpaca", {}, "ALPACA_API_KEY"),
        (7, {}, "function"),
        ("none", {"alerts": ["AAPL pnl"]}, "alerts"),
        ("none", {"redis_url": "http://x"}, "redis://"),
    ],
)
def test_what_cannot_be_used_is_said_at_once(
    positions: Any, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        pnl_router(positions, settings=Settings(), **options)
