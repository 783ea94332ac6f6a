"""The server of a journal: Alpaca's protocol, what each client gets, and when."""

import json
import time
from contextlib import asynccontextmanager, contextmanager

import anyio
import httpx
import msgspec
import pytest
from websockets.asyncio.client import connect

from mdservice.errors import ConfigurationError, JournalError
from mdservice.journal.format import (
    MAGIC,
    EntryType,
    encode_entry,
    encode_event,
    encode_frames,
)
from mdservice.journal.replay import MAX_SPEED, open_journal, open_replay
from mdservice.model.timestamps import format_ns

pytestmark = pytest.mark.sockets

SECOND_NS = 10**9
BEGIN_NS = 1_800_000_000 * SECOND_NS
LIMIT_S = 20


def quote(symbol, number, **more):
    at = format_ns(BEGIN_NS + number * SECOND_NS)
    return {
        "T": "q",
        "S": symbol,
        "bp": number,
        "bs": 1,
        "ap": 9,
        "as": 1,
        "t": at,
        "z": "C",
        **more,
    }


def trade(symbol, number):
    at = format_ns(BEGIN_NS + number * SECOND_NS)
    return {"T": "t", "S": symbol, "i": number, "p": 9, "s": 1, "t": at}


class Writer:
    """Writes a journal by hand: JSON frames of one connection, second by second."""

    def __init__(self, folder, feed="stocks", topics=None, encoding="json"):
        self.data = bytearray(MAGIC)
        self.folder = folder
        self.second = 0
        self.encoding = encoding
        self.event("run", run="x")
        self.event("connecting", feed=feed, driver="websockets")
        self.event("login", feed=feed, encoding=encoding)
        topics = topics or {"quotes": ["AAPL", "MSFT"], "trades": ["AAPL"]}
        self.event("subscribe", feed=feed, topics=topics)
        self.frame([{"T": "subscription", **topics}])

    def _add(self, kind, payload):
        self.data += encode_entry(kind, 1, BEGIN_NS + self.second * SECOND_NS, payload)

    def event(self, name, **fields):
        self._add(EntryType.EVENT, encode_event(name, **fields))

    def frame(self, messages):
        if self.encoding == "json":
            data = json.dumps(messages, separators=(",", ":"))
        else:
            data = msgspec.msgpack.encode(messages)
        self._add(EntryType.FRAMES, encode_frames([data]))

    def close(self, number=1):
        self.folder.mkdir(exist_ok=True, parents=True)
        (self.folder / f"{number:08d}-2027-01-15.journal").write_bytes(self.data)


@contextmanager
def journal_at(folder, number=1, **more):
    writer = Writer(folder, **more)
    yield writer
    writer.close(number)


@asynccontextmanager
async def client_of(replay, asked, path="/v2/iex", encoding="application/json"):
    url = f"ws://{replay.address}{path}"
    async with connect(url, additional_headers={"Content-Type": encoding}) as websocket:
        decode = json.loads if encoding.endswith("json") else msgspec.msgpack.decode
        assert decode(await websocket.recv())[0]["msg"] == "connected"
        await websocket.send(
            json.dumps({"action": "auth", "key": "k", "secret": "s"}).encode()
            if encoding.endswith("json")
            else msgspec.msgpack.encode({"action": "auth", "key": "k", "secret": "s"})
        )
        assert decode(await websocket.recv())[0]["msg"] == "authenticated"
        for one in asked:
            request = {"action": "subscribe", **one}
            await websocket.send(
                json.dumps(request)
                if encoding.endswith("json")
                else msgspec.msgpack.encode(request)
            )
            assert decode(await websocket.recv())[0]["T"] == "subscription"
        yield websocket


async def messages_of(websocket, count, decode=json.loads):
    found = []
    with anyio.fail_after(LIMIT_S):
        while len(found) < count:
            found += decode(await websocket.recv())
    return found


def run(main):
    anyio.run(main, backend="asyncio")


ALL = [{"quotes": ["AAPL", "MSFT"], "trades": ["AAPL"]}]


def test_a_client_that_subscribes_all_gets_the_frames_as_they_came(tmp_path):
    odd = quote("AAPL", 1, unknown={"x": [1]})
    with journal_at(tmp_path) as writer:
        writer.frame([odd, trade("AAPL", 1)])
        writer.frame([quote("MSFT", 2)])

    async def main():
        async with (
            open_replay(open_journal([tmp_path]), speed=MAX_SPEED) as replay,
            client_of(replay, ALL) as client,
        ):
            assert await messages_of(client, 3) == [odd, trade("AAPL", 1), quote("MSFT", 2)]

    run(main)


def test_another_client_gets_what_it_has_subscribed_alone(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1), quote("MSFT", 1), trade("AAPL", 1)])
        writer.frame([quote("MSFT", 2)])

    async def main():
        async with (
            open_replay(open_journal([tmp_path]), speed=MAX_SPEED) as replay,
            client_of(replay, [{"quotes": ["MSFT"]}]) as client,
        ):
            found = await messages_of(client, 2)
            assert found == [quote("MSFT", 1), quote("MSFT", 2)]

    run(main)


@pytest.mark.parametrize("recorded", ["json", "msgpack"])
def test_a_client_gets_the_encoding_that_it_asks_for(tmp_path, recorded):
    with journal_at(tmp_path, encoding=recorded) as writer:
        writer.frame([quote("AAPL", 1)])
    other = "msgpack" if recorded == "json" else "json"

    async def main():
        async with (
            open_replay(open_journal([tmp_path]), speed=MAX_SPEED) as replay,
            client_of(replay, ALL, encoding=f"application/{other}") as client,
        ):
            decode = json.loads if other == "json" else msgspec.msgpack.decode
            (found,) = await messages_of(client, 1, decode)
            assert (found["S"], found["bp"], found["z"]) == ("AAPL", 1, "C")

    run(main)


def test_subscriptions_of_the_recorded_service_are_not_sent(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([{"T": "error", "code": 405, "msg": "symbol limit exceeded"}])
        writer.frame([{"T": "subscription", "quotes": []}])
        writer.frame([quote("AAPL", 1)])  # no longer subscribed
        writer.frame([{"T": "subscription", "quotes": ["AAPL"]}])
        writer.frame([quote("AAPL", 2)])

    async def main():
        async with (
            open_replay(open_journal([tmp_path]), speed=MAX_SPEED) as replay,
            client_of(replay, ALL) as client,
        ):
            assert (await messages_of(client, 1))[-1] == quote("AAPL", 2)

    run(main)


def test_data_waits_until_a_client_has_subscribed_all(tmp_path, monkeypatch):
    monkeypatch.setattr("mdservice.journal.replay._QUIET_S", 3_600)
    with journal_at(tmp_path) as writer:
        writer.frame([quote("MSFT", 1), trade("AAPL", 1)])

    async def main():
        async with (
            open_replay(open_journal([tmp_path]), speed=MAX_SPEED) as replay,
            client_of(replay, [{"quotes": ["AAPL"]}, *ALL]) as client,
        ):
            assert len(await messages_of(client, 2)) == 2

    run(main)


def test_each_feed_gets_its_own(tmp_path):
    with journal_at(tmp_path, feed="crypto", topics={"quotes": ["BTC/USD"]}) as writer:
        writer.frame([quote("BTC/USD", 1)])

    async def main():
        async with (
            open_replay(open_journal([tmp_path]), speed=MAX_SPEED) as replay,
            client_of(replay, [{"quotes": ["BTC/USD"]}], "/v1beta3/crypto/us") as crypto,
            client_of(replay, ALL) as stocks,
        ):
            assert (await messages_of(crypto, 1))[0]["S"] == "BTC/USD"
            with anyio.fail_after(LIMIT_S):
                while len(replay.players) < 2 or not all(p.ended for p in replay.players):
                    await anyio.sleep(0.01)
            with anyio.move_on_after(0.1):
                pytest.fail(f"{await stocks.recv()!r}")

    run(main)


def test_a_part_of_the_time_is_served(tmp_path):
    with journal_at(tmp_path) as writer:
        for writer.second in range(1, 9):
            writer.frame([quote("AAPL", writer.second)])
    journal = open_journal([tmp_path], BEGIN_NS + 3 * SECOND_NS, BEGIN_NS + 5 * SECOND_NS)

    async def main():
        async with (
            open_replay(journal, speed=MAX_SPEED) as replay,
            client_of(replay, ALL) as client,
        ):
            found = await messages_of(client, 2)
            assert [each["bp"] for each in found] == [3, 4]

    run(main)


def test_several_journals_follow_each_other(tmp_path):
    for number, name in enumerate(["monday", "tuesday"]):
        with journal_at(tmp_path / name) as writer:
            writer.frame([quote("AAPL", number)])
    journal = open_journal([tmp_path / "monday", tmp_path / "tuesday"])

    async def main():
        async with (
            open_replay(journal, speed=MAX_SPEED) as replay,
            client_of(replay, ALL) as client,
        ):
            assert [each["bp"] for each in await messages_of(client, 2)] == [0, 1]

    run(main)


def test_the_pace_is_that_of_the_recording_times_the_speed(tmp_path):
    with journal_at(tmp_path) as writer:
        for writer.second in (0, 10):
            writer.frame([quote("AAPL", writer.second)])

    async def main():
        began_s = time.monotonic()
        async with (
            open_replay(open_journal([tmp_path]), speed=20) as replay,
            client_of(replay, ALL) as client,
        ):
            await messages_of(client, 2)
            assert time.monotonic() - began_s > 0.49

    run(main)


def test_rest_answers_without_a_record(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1)])

    async def main():
        async with (
            open_replay(open_journal([tmp_path])) as replay,
            httpx.AsyncClient(base_url=f"http://{replay.address}") as http,
        ):
            for path, name in (
                ("/v2/stocks/quotes/latest?symbols=AAPL", "quotes"),
                ("/v2/stocks/trades?symbols=AAPL", "trades"),
                ("/v1beta3/crypto/us/latest/quotes?symbols=BTC/USD", "quotes"),
            ):
                answer = await http.get(path)
                assert (answer.status_code, answer.json()[name]) == (200, {})
            assert (await http.get("/v2/clock")).json()["is_open"] is False
            assert (await http.get("/v2/positions")).json() == []
            assert (await http.get("/v2/account")).status_code == 404

    run(main)


def test_a_journal_that_breaks_off_ends_the_connection_alone(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1)])
    journal = open_journal([tmp_path])
    for path in tmp_path.iterdir():
        path.unlink()

    async def main():
        async with open_replay(journal, speed=MAX_SPEED) as replay:
            for _ in range(2):
                async with client_of(replay, ALL) as client:
                    with anyio.fail_after(LIMIT_S):
                        await client.wait_closed()
            assert "try again" in replay.players[0].error

    run(main)


def test_what_precedes_the_place_where_a_journal_breaks_off_is_sent(tmp_path):
    for number in (1, 2):
        with journal_at(tmp_path, number=number) as writer:
            writer.frame([quote("AAPL", number)])
    journal = open_journal([tmp_path])
    max(tmp_path.iterdir()).unlink()

    async def main():
        async with (
            open_replay(journal, speed=MAX_SPEED) as replay,
            client_of(replay, ALL) as client,
        ):
            assert await messages_of(client, 1) == [quote("AAPL", 1)]
            with anyio.fail_after(LIMIT_S):
                await client.wait_closed()

    run(main)


def test_what_is_due_does_not_wait_for_what_comes_later(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1)])
        writer.second = 3600
        writer.frame([quote("AAPL", 2)])

    async def main():
        async with (
            open_replay(open_journal([tmp_path]), speed=1) as replay,
            client_of(replay, ALL) as client,
        ):
            assert await messages_of(client, 1) == [quote("AAPL", 1)]

    run(main)


@pytest.mark.thorough
def test_a_client_that_does_not_read_holds_up_the_reading_of_the_journal(tmp_path):
    count = 400
    with journal_at(tmp_path) as writer:
        for writer.second in range(count):
            writer.frame([quote("AAPL", writer.second, more="x" * 100_000)])

    async def main():
        async with (
            open_replay(open_journal([tmp_path]), speed=MAX_SPEED) as replay,
            client_of(replay, ALL) as client,
        ):
            assert await messages_of(client, 1)
            client.transport.pause_reading()
            player, before = replay.players[0], -1
            with anyio.fail_after(LIMIT_S):
                while player.messages > before:
                    before = player.messages
                    await anyio.sleep(0.3)
            assert player.messages < count
            client.transport.resume_reading()
            found = await messages_of(client, count - 1)
            assert [each["bp"] for each in found] == [*range(1, count)]

    run(main)


def test_a_port_in_use_is_named(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1)])

    async def main():
        async with open_replay(open_journal([tmp_path])) as replay:
            port = int(replay.address.rpartition(":")[2])
            with pytest.raises(ConfigurationError, match=str(port)):
                async with open_replay(open_journal([tmp_path]), port=port):
                    pass

    run(main)


def test_a_folder_without_a_journal_is_named(tmp_path):
    with pytest.raises(JournalError, match="MDSERVICE_JOURNAL"):
        open_journal([tmp_path])
    with pytest.raises(JournalError, match="cannot be read"):
        open_journal([tmp_path / "none"])


def test_a_time_without_entries_is_an_error(tmp_path):
    with journal_at(tmp_path) as writer:
        writer.frame([quote("AAPL", 1)])
    with pytest.raises(JournalError, match="nothing of that time") as error:
        open_journal([tmp_path], from_ns=BEGIN_NS + 60 * SECOND_NS)
    assert format_ns(BEGIN_NS) in str(error.value)
