"""The HTTP API's channels: a running program on simulated markets, over its UNIX socket."""

from __future__ import annotations

import json
import time
from typing import Any

import attrs
import httpx
import pytest

from mdservice.model.feeds import CHANNELS, FEEDS, feed_of, kinds_of
from mdservice.model.kinds import NEWS

MARKET_DATA = "/api/v1/market-data"
STOCK, PAIR, OPTION = "AAPL", "BTC/USD", "AAPL281215C00200000"


@attrs.frozen
class Served:
    stage: Any
    service: Any
    valkey: Any

    def key(self, kind: Any, symbol: str) -> bytes | None:
        with self.valkey.client() as client:
            return client.get(f"{kind.key_prefix}{symbol}")

    def get(self, path: str, **params: str) -> httpx.Response:
        return self.service.http.get(f"{MARKET_DATA}/{path}", params=params)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.service.http.post(f"{MARKET_DATA}/{path}", json=body)


@pytest.fixture(scope="module")
def served(module_stage: Any) -> Served:
    simulator = module_stage.simulator(
        rate=30, crypto_rate=10, options_rate=5, news_every_s=1, halt_every_s=None,
        correction_ratio=0.02, cancel_ratio=0.02,
    )  # fmt: skip
    valkey = module_stage.valkey()
    service = module_stage.service(
        simulator, valkey,
        MDSERVICE_SYMBOLS=f"{STOCK},{PAIR},{OPTION}",
        MDSERVICE_CHANNELS=",".join(CHANNELS),
        MDSERVICE_NEWS="*",
    )  # fmt: skip
    return Served(module_stage, service.wait_ready(), valkey)


def test_subscriptions_name_every_channel_that_is_acknowledged(served: Served) -> None:
    def listed() -> Any:
        found = served.get("subscriptions").json()
        expected = {
            symbol: set(feed_of(symbol).channels) & set(CHANNELS)
            for symbol in (STOCK, PAIR, OPTION)
        }
        got = {symbol: set(found["channels"].get(symbol, ())) for symbol in expected}
        return got == expected and set(found["symbols"]) == set(expected)

    served.stage.eventually(listed, what=lambda: served.get("subscriptions").text)
    assert served.get("subscriptions").json()["left_out"] == {}


@pytest.mark.parametrize("symbol", [STOCK, PAIR, OPTION])
@pytest.mark.parametrize("channel", ["quotes", "trades", "lulds", "orderbooks", "statuses"])
def test_a_latest_record_is_the_bytes_of_its_key(served: Served, symbol: str, channel: str) -> None:
    kind = kinds_of([channel])[0]
    if kind not in feed_of(symbol).kinds:
        assert served.get(f"latest/{channel}/{symbol}").status_code == 404
        return

    def same() -> bool:
        """The answer, which may be ahead of the key, and the key's value."""
        before = served.key(kind, symbol)
        answers = [served.get(f"latest/{channel}/{path}") for path in {symbol, symbol.lower()}]
        listed = served.get(f"latest/{channel}", symbols=symbol).content
        found = [answer.content for answer in answers]
        return found == [before] * len(found) and listed == b'{"records":[%b]}' % (before or b"")

    served.stage.eventually(same, within=30)


def test_a_slash_may_be_written_as_it_is_or_encoded(served: Served) -> None:
    paths = (f"latest/trades/{PAIR}", "latest/trades/BTC%2FUSD", "prices/BTC%2FUSD")
    for path in paths:
        served.stage.eventually(lambda path=path: served.get(path).status_code == 200)
        assert served.get(path).json()["symbol"] == PAIR


def test_news_are_those_of_the_stream_the_newest_first(served: Served) -> None:
    def some() -> list[bytes]:
        with served.valkey.client() as client:
            entries = client.xrevrange("news", count=3)
        return [fields[b"data"] for _, fields in entries] if len(entries) == 3 else []

    def same() -> bool:
        before = some()
        answer = served.get("news", limit="3").content
        return bool(before) and answer == b'{"news":[%b]}' % b",".join(before)

    served.stage.eventually(same, within=30)
    entries = json.loads(served.get("news").content)["news"]
    about = entries[0]["symbols"][0] if entries[0]["symbols"] else None
    if about is not None:
        found = served.get("news", symbols=about).json()["news"]
        assert found
        assert all(about in article["symbols"] for article in found)


def test_the_stream_sends_each_kind_under_its_event(served: Served) -> None:
    wanted = {kind.event for kind in kinds_of(("quotes", "trades", "orderbooks", "lulds", "news"))}
    seen: dict[str, dict[str, Any]] = {}
    params = {"channels": "quotes,trades,orderbooks,lulds,news"}
    deadline = time.monotonic() + 60
    with served.service.http.stream("GET", f"{MARKET_DATA}/stream", params=params) as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                seen.setdefault(name, json.loads(line[6:]))
            if wanted <= seen.keys() or time.monotonic() > deadline:
                break
    assert wanted | {"feed.status"} >= seen.keys()
    assert wanted - seen.keys() <= {"trade.corrected", "trade.canceled"}
    assert seen[NEWS.event].keys() >= {"id", "headline", "symbols", "timestamp"}


def test_channels_are_taken_and_given_back_one_by_one(served: Served) -> None:
    symbol = served.stage.new_symbol()

    def channels() -> list[str]:
        return sorted(served.get("subscriptions").json()["channels"].get(symbol, ()))

    answer = served.post("subscribe", symbol=symbol, channels=["trades", "bars"])
    assert answer.json() == {"status": "subscribed", "symbol": symbol, "symbols": [symbol]}
    assert channels() == ["bars", "trades"]
    served.post("subscribe", symbol=symbol, channels=["quotes"])
    served.post("unsubscribe", symbol=symbol, channels=["bars"])
    assert channels() == ["quotes", "trades"]
    assert served.post("unsubscribe", symbol=symbol).json()["status"] == "unsubscribed"
    assert channels() == []


@pytest.mark.parametrize(
    ("symbol", "channels"), [(STOCK, ["orderbooks"]), (PAIR, ["statuses"]), (OPTION, ["bars"])]
)
def test_only_channels_that_the_class_lacks_are_422(
    served: Served, symbol: str, channels: list[str]
) -> None:
    before = served.get("subscriptions").json()
    for call in ("subscribe", "unsubscribe"):
        answer = served.post(call, symbol=symbol, channels=channels)
        assert answer.status_code == 422
        assert channels[0] in answer.json()["detail"]
    assert served.get("subscriptions").json() == before
    assert served.post("subscribe", symbol=symbol, channels=["quotes", *channels]).is_success


def test_the_status_has_every_connection(served: Served) -> None:
    feeds = served.service.get("/status")["feeds"]
    assert feeds.keys() >= {feed.name for feed in FEEDS}
