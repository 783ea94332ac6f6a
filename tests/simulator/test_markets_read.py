"""The service's own codec and history read crypto, options and news; each was written apart."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import Any

import anyio
import msgspec
import pytest
from trio.testing import MockClock

from mdservice.feed.alpaca.codec import Codec
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory
from mdservice.feed.history import History
from mdservice.gateway.missing_prices import LastCloses
from mdservice.model import feeds
from mdservice.model.feeds import Feed
from mdservice.model.kinds import BARS, DAILY_BARS, NEWS, ORDERBOOKS, QUOTES, TRADES, Kind
from mdservice.pnl.day import new_york_date
from mdservice.simulator import SimulatorConfig, crypto, news, open_simulator, options
from mdservice.simulator.bars import MINUTE_NS, SimBar
from mdservice.simulator.crypto import SimBook, SimPairQuote, SimPairTrade
from mdservice.simulator.kinds import SimKind
from mdservice.simulator.news import SimArticle
from mdservice.simulator.options import SimOptionQuote, SimOptionTrade
from mdservice.simulator.transport import SimulatorTransport
from mdservice.simulator.wire import Encoding
from mdservice.testing import VirtualClock

NOW = 1_795_186_800_123_456_789
CALL = "AAPL281215C00190000"
BAR = SimBar("X/Y", 10.0, 11.25, 9.5, 10.5, 0.123456789, 67, 10.123456, NOW)
ARTICLE = SimArticle(7, "It rose", ("AAPL", "BTCUSD"), "Short", "<p>Long</p>", created_ns=NOW - 5)
RECORDS: list[tuple[SimKind[Any], Kind[Any], Any]] = [
    (crypto.QUOTES, QUOTES, SimPairQuote("X/Y", 1.0, 1.5, 0.25, 13445.46, NOW)),
    (crypto.TRADES, TRADES, SimPairTrade("X/Y", 47.299, 29.205707815, 1 << 62, "S", NOW)),
    (crypto.BARS, BARS, BAR),
    (crypto.UPDATED_BARS, BARS, BAR),
    (crypto.DAILY_BARS, DAILY_BARS, BAR),
    (
        crypto.ORDERBOOKS,
        ORDERBOOKS,
        SimBook("X/Y", ((10.5, 0.25), (10.0, 2.0)), ((11.0, 0.0),), False, NOW),
    ),
    (crypto.ORDERBOOKS, ORDERBOOKS, SimBook("X/Y", ((10.0, 2.0),), ((11.0, 3.0),), True, NOW)),
    (options.QUOTES, QUOTES, SimOptionQuote(CALL, 0.0, 0.05, 0, 7, NOW, " ", "C", "A")),
    (options.TRADES, TRADES, SimOptionTrade(CALL, 3.0, 7, NOW, "N", "I")),
    (news.ARTICLES, NEWS, msgspec.structs.replace(ARTICLE, ts_event_ns=NOW)),
]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize(("sim_kind", "kind", "record"), RECORDS)
def test_the_service_reads_each_kind(
    sim_kind: SimKind[Any], kind: Kind[Any], record: Any, encoding: Encoding
) -> None:
    frame = sim_kind.encode([record, record], encoding, spoil=True)
    received = Codec(encoding).decode([frame.data.decode() if frame.text else frame.data], NOW)
    assert received.errors == 1, "the broken message between them"
    read, same = received.records[kind]
    assert read == same
    left_out = {"created_ns"}
    if kind is QUOTES:  # the service's quotes have prices and sizes alone
        left_out = {"bid_exchange", "ask_exchange", "condition"}
    names = [name for name in record.__struct_fields__ if name not in left_out]
    expected = {name: getattr(record, name) for name in names}
    if "condition" in expected:
        expected["conditions"] = (expected.pop("condition"),)
    if "taker" in expected:
        expected["taker_side"] = {"B": "buy", "S": "sell"}[expected.pop("taker")]
    assert {name: getattr(read, name) for name in expected} == expected


STREAMED: list[tuple[Feed, str, str, list[str], dict[str, Kind[Any]]]] = [
    (
        feeds.CRYPTO,
        "us",
        "/v1beta3/crypto/us",
        ["BTC/USD", "DOGE/USD"],
        {"quotes": QUOTES, "trades": TRADES, "bars": BARS, "updatedBars": BARS},
    ),
    (feeds.OPTIONS, "opra", "/v1beta1/opra", [CALL], {"trades": TRADES}),
    (feeds.NEWS_FEED, "", "/v1beta1/news", ["*"], {"news": NEWS}),
]


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("feed", "variant", "path", "symbols", "channels"), STREAMED)
async def test_the_services_history_is_what_it_read_from_the_stream(
    feed: Feed,
    variant: str,
    path: str,
    symbols: list[str],
    channels: dict[str, Kind[Any]],
    seed: int,
    dial: Any,
    autojump_clock: MockClock,
) -> None:
    config = SimulatorConfig(
        seed=seed, crypto_rate=20, options_rate=20, rest_page_size=50, late_trade_ratio=0.02
    )
    clock = VirtualClock()
    with anyio.fail_after(600):
        async with open_simulator(config, port=None, clock=clock) as simulator:
            client = await dial(simulator, msgpack=True, path=path)
            await client.login()
            await client.send(action="subscribe", **dict.fromkeys(channels, symbols))
            await anyio.sleep(1)
            start_ns = clock.utc_ns()
            await anyio.sleep(230)
            await client.send(action="unsubscribe", **dict.fromkeys(channels, symbols))
            codec = Codec("msgpack", feed=feed)
            read: dict[Kind[Any], list[Any]] = defaultdict(list)
            acknowledged = 0
            while acknowledged < 2:
                received = codec.decode([await client.frame()], clock.utc_ns())
                acknowledged += len(received.controls)
                assert not received.errors
                for kind, records in received.records.items():
                    read[kind] += records
            history = AlpacaHistory(
                simulator.rest_url,
                variant,
                Credentials("key", "secret"),
                clock,
                transport=SimulatorTransport(simulator),
                feed=feed,
            )
            for kind in channels.values():
                end_ns = clock.utc_ns()
                past = await history.past(kind, symbols, start_ns, end_ns)
                last = {_place(kind, record): record for record in read[kind]}
                expected = [record for record in last.values() if record.ts_event_ns >= start_ns]
                assert {kind.identity(record) for record in past} == {
                    kind.identity(record) for record in expected
                }
                assert len(past) == len(expected) > 2
                newest = await history.latest(kind, symbols)
                assert {kind.identity(record) for record in newest} <= {
                    kind.identity(record) for record in expected
                }


def _place(kind: Kind[Any], record: Any) -> Any:
    """What a later version takes the place of."""
    if kind is BARS:
        return record.symbol, record.ts_event_ns
    return record.id if kind is NEWS else kind.identity(record)


@pytest.mark.thorough
async def test_the_gateway_reads_last_closes_of_crypto_and_options(
    dial: Any, autojump_clock: MockClock
) -> None:
    clock, later = VirtualClock(), VirtualClock()
    config = SimulatorConfig(
        crypto_rate=20, options_rate=20, late_trade_ratio=0, connection_limit=None
    )
    paths = {
        feeds.CRYPTO: ("/v1beta3/crypto/us", "us", "BTC/USD"),
        feeds.OPTIONS: ("/v1beta1/opra", "opra", CALL),
    }
    with anyio.fail_after(600):
        async with open_simulator(config, port=None, clock=clock) as simulator:
            histories: dict[Feed, History] = {}
            for feed, (path, variant, symbol) in paths.items():
                client = await dial(simulator, msgpack=True, path=path)
                await client.login()
                await client.send(action="subscribe", trades=[symbol])
                histories[feed] = AlpacaHistory(
                    simulator.rest_url,
                    variant,
                    Credentials("key", "secret"),
                    clock,
                    transport=SimulatorTransport(simulator),
                    feed=feed,
                )
            await anyio.sleep(210)
            later.step(86_400)
            closes = LastCloses(histories, later)
            found, reasons = await closes.before(new_york_date(later.utc_ns()), ["BTCUSD", CALL])
            # The daily bar of crypto is made after each minute, with the trades until then.
            until_ns = clock.utc_ns() // MINUTE_NS * MINUTE_NS
            coins = [one for one in simulator.history_of(crypto.TRADES) if one.symbol == "BTC/USD"]
            before = [one for one in coins if one.ts_event_ns < until_ns]
            contracts = [one for one in simulator.history_of(options.TRADES) if one.symbol == CALL]
            prices = {"BTC/USD": before[-1].price, CALL: contracts[-1].price}
            expected = {symbol: Decimal(repr(price)) for symbol, price in prices.items()}
            assert (found, reasons) == (expected, [])
            today = await closes.before(new_york_date(clock.utc_ns()), ["BTCUSD", CALL])
            assert today == ({}, []), "there was no day before"
