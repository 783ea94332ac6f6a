"""The relay with clients over loopback: what they get, and what none of them can break."""

from __future__ import annotations

import errno
import logging
import socket
import zlib
from contextlib import suppress
from typing import Any

import anyio
import attrs
import pytest
from anyio.abc import SocketAttribute
from websockets.exceptions import InvalidMessage
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode

from mdservice.model.feeds import CRYPTO, NEWS_FEED, OPTIONS, STOCKS, Topic
from mdservice.model.kinds import NEWS, ORDERBOOKS, QUOTES, TRADES
from mdservice.relay import fanout, server, websocket, wishes
from mdservice.relay.server import Client
from mdservice.relay.websocket import MOST_MESSAGE_BYTES
from tests.records import make_record
from tests.relay.peers import KEY, Peer, Served, listen, on_both, serve, until

pytestmark = pytest.mark.sockets

LOGIN = {"action": "auth", "key": "key", "secret": "secret"}
CONNECTED = [{"T": "success", "msg": "connected"}]
AUTHENTICATED = [{"T": "success", "msg": "authenticated"}]
LARGE = "x" * 1_000


def quote(symbol: str = "AAPL", number: int = 1) -> Any:
    return make_record(QUOTES, symbol, number)


def trade(symbol: str = "AAPL", number: int = 1) -> Any:
    return make_record(TRADES, symbol, number)


def large_trade(number: int) -> Any:
    """A trade with a kilobyte, so that few of them fill a socket."""
    return attrs.evolve(make_record(TRADES, "AAPL", number), id=number, conditions=(LARGE,))


def error(code: int, text: str) -> list[dict[str, Any]]:
    return [{"T": "error", "code": code, "msg": text}]


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The events of the relay's log."""
    records = [one for one in caplog.records if one.name == "mdservice.relay.server"]
    return [record.getMessage().split()[0] for record in records]


def numbers(messages: list[Any]) -> list[Any]:
    """The numbers of quotes, trades and books, in order."""
    found = [one for one in messages if one["T"] in "qto"]
    return [one["bp"] if one["T"] == "q" else one["i"] for one in found]


# Logging in


@on_both
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_a_client_logs_in_subscribes_and_gets_records(encoding: str) -> None:
    async with serve() as served:
        peer = await served.connect(encoding=encoding)
        assert peer.status == 101
        assert await peer.receive() == CONNECTED
        await peer.send({"action": "subscribe", "quotes": ["AAPL"]})
        assert await peer.receive() == error(401, "not authenticated")
        await peer.send(LOGIN)
        assert await peer.receive() == AUTHENTICATED
        await peer.send(LOGIN)
        assert await peer.receive() == error(403, "already authenticated")
        assert await peer.subscribe(quotes=["AAPL"]) == {"quotes": ["AAPL"]}
        assert served.upstream.wanted == {Topic("quotes", "AAPL")}
        served.offer(QUOTES, quote("AAPL", 1), quote("MSFT", 2), quote("AAPL", 3))
        assert numbers(await peer.take(2)) == [1, 3]
        assert await peer.subscribe(trades=["*"]) == {
            "quotes": ["AAPL"], "trades": ["*"], "corrections": ["*"], "cancelErrors": ["*"],
        }  # fmt: skip
        await peer.send({"action": "x"})
        assert await peer.receive() == error(400, "invalid syntax")
        await peer.close()
        await until(lambda: not served.clients)


@on_both
async def test_the_headers_of_the_upgrade_may_log_in() -> None:
    async with serve(keys={"key": "secret"}) as served:
        await (await served.log_in()).close()
        peer = await served.connect(headers={**KEY, "APCA-API-SECRET-KEY": "wrong"})
        assert await peer.receive() == CONNECTED
        assert await peer.receive() == error(402, "auth failed")
        assert await peer.receive() == []
        assert peer.close_code == 1000
        await until(lambda: not served.clients)


@on_both
async def test_after_a_failed_login_nothing_more_is_read() -> None:
    async with serve(keys={"key": "secret"}) as served:
        peer = await served.connect()
        wrong, right = {**LOGIN, "secret": "x"}, LOGIN
        peer.protocol.send_text(str(wrong).replace("'", '"').encode())
        peer.protocol.send_text(str(right).replace("'", '"').encode())
        await peer._send()
        assert await peer.rest() == CONNECTED + error(402, "auth failed")
        await until(lambda: not served.clients)


@on_both
async def test_a_feed_that_is_not_set_up_is_refused_after_the_login() -> None:
    async with serve(served={STOCKS: "iex"}) as served:
        peer = await served.connect("/v2/sip")
        assert await peer.receive() == CONNECTED
        await peer.send(LOGIN)
        assert await peer.rest() == error(409, "insufficient subscription")
        peer = await served.connect("/v1beta1/news", headers=KEY)
        assert await peer.rest() == CONNECTED + error(409, "insufficient subscription")
        await until(lambda: not served.clients)


async def connect_within(
    served: Served, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Peer, float]:
    """A client whose upgrade was faster than the time for the login, which is returned."""
    for limit_s in (0.1, 0.5, 2.5, 12.5):
        monkeypatch.setattr(server, "AUTH_TIMEOUT_S", limit_s)
        with suppress(InvalidMessage, OSError, EOFError):
            peer = await served.connect(**options)
            if await peer.receive() == CONNECTED:
                return peer, limit_s
    raise AssertionError("no upgrade was fast enough")


@on_both
async def test_a_client_that_does_not_log_in_gets_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve() as served:
        peer, _ = await connect_within(served, monkeypatch)
        assert await peer.rest() == error(404, "auth timeout")
        slow = await served.dial()
        slow.send(b"GET /v2/iex HTTP/1.1\r\nHost: x\r\nX: ")
        await anyio.wait_readable(slow)
        assert slow.recv(1) == b""  # it did not finish its upgrade
        slow.close()
        await until(lambda: not served.relay._connections)


@on_both
@pytest.mark.parametrize("begin", [b"", b"G", b"GET /v2/iex HTTP/1.1\r\nHost: x\r\nX: "])
async def test_a_client_that_dribbles_its_upgrade_is_ended_however_often_it_sends(
    monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(server, "_CLOSE_S", 0.2)
    async with serve() as served:
        await connect_within(served, monkeypatch)  # makes the time for a login short
        slow = await served.dial()
        slow.send(begin)
        with suppress(OSError):  # until it is reset
            while not await is_over(slow):
                slow.send(b"x")
        slow.close()
        await until(lambda: not served.relay._connections)


async def is_over(sock: socket.socket) -> bool:
    """Whether the server ends the connection within a moment."""
    with anyio.move_on_after(0.02):
        await anyio.wait_readable(sock)
        return sock.recv(1) == b""
    return False


@on_both
async def test_a_client_that_has_logged_in_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as served:
        peer, limit_s = await connect_within(served, monkeypatch, headers=KEY)
        assert await peer.receive() == AUTHENTICATED
        await anyio.sleep(limit_s * 2)
        assert await peer.subscribe(quotes=["AAPL"])


# Upgrades


@on_both
async def test_an_unknown_path_is_not_found() -> None:
    async with serve() as served:
        for path in ("/", "/v2/x", "/stream?x=1"):
            peer = await served.connect(path)
            assert peer.status == 404
        peer = await served.connect("/v2/iex/?x=1")
        assert peer.status == 101


@on_both
async def test_a_page_of_another_host_may_not_use_a_relay_without_keys() -> None:
    """A browser lets any page connect to this machine, and says whose page it is."""
    others = ("https://example.com", "null", "http://[::1", "http://127.0.0.1.example.com")
    ours = ("http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:80")
    async with serve() as served:
        for origin in others:
            assert (await served.connect(headers={"Origin": origin})).status == 403
        for origin in ours:
            assert (await served.connect(headers={"Origin": origin})).status == 101
    async with serve(keys={"key": "secret"}) as served:
        assert (await served.connect(headers={"Origin": others[0]})).status == 101


@on_both
async def test_until_the_service_has_started_it_is_unavailable() -> None:
    started = False
    async with serve(ready=lambda: started) as served:
        peer = await served.connect()
        assert peer.status == 503
        assert peer.response is not None
        assert peer.response.headers["Retry-After"] == "1"
        started = True
        assert (await served.connect()).status == 101
        served.relay.refuse()
        assert (await served.connect()).status == 503
        assert len(served.clients) == 1


REQUEST = (
    b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n"
)
WRONG = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "plain HTTP": b"GET /v2/iex HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST": b"POST /v2/iex HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "no version": b"GET /v2/iex\r\n\r\n",
    "a path that is not ASCII": REQUEST % (b"/v2/\xff\xfe", b""),
    "a long path": REQUEST % (b"/" + b"x" * 100_000, b""),
    "many headers": REQUEST % (b"/v2/iex", b"X: y\r\n" * 1_000),
    "a long header": REQUEST % (b"/v2/iex", b"X: " + b"y" * 100_000 + b"\r\n"),
    "two keys": REQUEST % (b"/v2/iex", b"Sec-WebSocket-Key: x\r\n"),
    "a wrong extension": REQUEST
    % (b"/v2/iex", b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99,;\r\n"),
    "headers that are not ASCII": REQUEST
    % (b"/v2/iex", b"User-Agent: \xff\xfe\r\nAPCA-API-KEY-ID: \xff\r\nAPCA-API-SECRET-KEY: \xff\r\n"),
    "two of each header": REQUEST
    % (
        b"/v2/iex",
        b"".join(
            b"%s: a\r\n%s: b\r\n" % (name, name)
            for name in (
                b"User-Agent", b"Content-Type", b"APCA-API-KEY-ID", b"APCA-API-SECRET-KEY"
            )
        ),
    ),
    "frames with the upgrade": REQUEST % (b"/v2/iex", b"") + b"\x89\x80abcd\xff\xff\xff\xff",
    "no frames behind a plain request": b"GET /v2/iex HTTP/1.1\r\nHost: a\r\n\r\noVZp4K065g==\r\n",
    "no frames behind an unknown path": REQUEST % (b"/v2/x", b"") + b"\xff\xff\xff\xff",
}  # fmt: skip


@on_both
@pytest.mark.parametrize("request_", WRONG.values(), ids=WRONG)
async def test_a_wrong_upgrade_ends_no_other_client(
    request_: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "_CLOSE_S", 0.1)
    async with serve(keys={"key": "secret"}) as served:
        with caplog.at_level(logging.INFO, "mdservice"):
            peer = await served.log_in()
            monkeypatch.setattr(server, "AUTH_TIMEOUT_S", 0.1)
            sock = await served.dial()
            sock.send(request_)
            while True:
                await anyio.wait_readable(sock)
                try:
                    if not sock.recv(65_536):
                        break
                except ConnectionError:
                    break
            sock.close()
            await until(lambda: served.relay._connections == 1)
            assert await peer.subscribe(quotes=["AAPL"])
        assert "relay_client_failed" not in events(caplog)


@on_both
async def test_a_client_is_named_by_its_program() -> None:
    async with serve() as served:
        await served.log_in(more_headers=[("User-Agent", "my bot" + "y" * 100)])
        await served.log_in()
        names = [client.name for client in served.relay.status().clients]
        assert names[0].startswith("my boty")
        assert len(names[0]) < 80
        assert names[1].endswith("(2)")


@on_both
async def test_more_clients_than_the_limit_are_refused() -> None:
    async with serve() as served:
        served.relay._most_clients = 1
        peer = await served.log_in()
        assert (await served.connect()).status == 503
        await peer.close()
        await until(lambda: not served.clients)
        assert (await served.connect()).status == 101
        served.relay._most_connections = served.relay._connections
        with pytest.raises((InvalidMessage, EOFError, OSError, anyio.BrokenResourceError)):
            await served.connect()


def test_the_connections_leave_files_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, connections in [
        (100, 50), (1_024, 512), (4_096, 3_328), (20_000, 8_000), (server.resource.RLIM_INFINITY, 8_000),
    ]:  # fmt: skip
        monkeypatch.setattr(server.resource, "getrlimit", lambda _, n=files: (n, n))
        assert server._most_connections() == connections


class FullListener:
    """A listener of a process that has no file left, once in a while."""

    def __init__(self, sock: socket.socket, errors: list[int]) -> None:
        self._sock = sock
        self._errors = errors

    def accept(self) -> Any:
        if self._errors:
            raise OSError(self._errors.pop(), "no")
        return self._sock.accept()

    def fileno(self) -> int:
        return self._sock.fileno()


@on_both
async def test_a_failed_accept_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with serve() as served:
        with caplog.at_level(logging.INFO, "mdservice"):
            listener = listen()
            errors = [errno.EMFILE, errno.EMFILE, errno.ECONNABORTED]
            full: Any = FullListener(listener, errors)
            assert served.relay._tasks is not None
            served.relay._tasks.start_soon(served.relay._accept, full)
            peer = await Peer.open(listener.getsockname())
            assert await peer.receive() == CONNECTED
            await peer.leave()
            listener.close()
        assert events(caplog).count("relay_cannot_accept") == 1


# Subscriptions


@on_both
async def test_a_new_subscriber_gets_the_latest_quote_at_once() -> None:
    async with serve() as served:
        served.offer(QUOTES, quote("AAPL", 1), quote("MSFT", 2))
        served.offer(TRADES, trade("AAPL", 9))
        peer = await served.log_in()
        assert await peer.subscribe(quotes=["AAPL"], trades=["AAPL"])
        assert numbers(await peer.receive()) == [1]
        assert await peer.subscribe(quotes=["*"])
        assert [one["S"] for one in await peer.receive()] == ["MSFT"]
        assert await peer.subscribe(quotes=["MSFT"])
        served.offer(QUOTES, quote("AAPL", 3))
        assert numbers(await peer.receive()) == [3]


@on_both
async def test_every_symbol_and_one_by_name_bring_its_latest_quote_once() -> None:
    async with serve() as served:
        served.offer(QUOTES, quote("AAPL", 1), quote("MSFT", 2))
        peer = await served.log_in()
        await peer.subscribe(quotes=["AAPL", "*"])
        assert numbers(await peer.receive()) == [1, 2]
        served.offer(QUOTES, quote("AAPL", 3))
        assert numbers(await peer.receive()) == [3]


@on_both
async def test_a_new_subscriber_gets_the_whole_order_book() -> None:
    async with serve(served={CRYPTO: "us"}) as served:
        book = make_record(ORDERBOOKS, "BTC/USD", 1)
        change = b'{"T":"o","S":"BTC/USD","b":[],"a":[],"t":"1970-01-01T00:00:00.000000002Z"}'
        served.offer(ORDERBOOKS, attrs.evolve(book, wire=change), feed=CRYPTO)
        peer = await served.log_in("/v1beta3/crypto/us")
        await peer.subscribe(orderbooks=["BTC/USD"])
        (whole,) = await peer.receive()
        assert whole["r"] is True
        served.offer(ORDERBOOKS, attrs.evolve(book, wire=change), feed=CRYPTO)
        (changed,) = await peer.receive()
        assert "r" not in changed


@on_both
async def test_a_name_that_is_unsubscribed_stays_with_every_symbol() -> None:
    async with serve() as served:
        peer = await served.log_in()
        await peer.subscribe(quotes=["AAPL", "*"])
        (client,) = served.clients
        served.offer(QUOTES, quote("AAPL", 1))
        await peer.unsubscribe(quotes=["AAPL"])
        served.offer(QUOTES, quote("AAPL", 2))
        await peer.unsubscribe(quotes=["*"])
        served.offer(QUOTES, quote("AAPL", 3))
        await peer.subscribe(quotes=["AAPL"])
        assert client.sent in (2, 3)
        assert numbers(await peer.receive()) == [3]


@on_both
async def test_what_waits_is_dropped_when_it_is_unsubscribed() -> None:
    async with serve() as served:
        peer = await served.log_in()
        await peer.subscribe(quotes=["AAPL", "MSFT"])
        (client,) = served.clients
        served.relay._flush = lambda *_: None  # type: ignore[method-assign]
        served.offer(QUOTES, quote("AAPL", 1), quote("MSFT", 2))
        await peer.send({"action": "unsubscribe", "quotes": ["AAPL"]})
        await until(lambda: client.backlog.controls)
        assert len(client.backlog) == 1
        del served.relay._flush  # type: ignore[method-assign]
        served.relay._flush(client, {})
        assert numbers(await peer.receive()) == [2]


@on_both
async def test_articles_that_wait_are_kept_for_their_other_symbols() -> None:
    async with serve(served={NEWS_FEED: ""}) as served:
        peer = await served.log_in("/v1beta1/news")
        await peer.subscribe(news=["AAPL", "MSFT"])
        (client,) = served.clients
        served.relay._flush = lambda *_: None  # type: ignore[method-assign]
        served.offer(NEWS, make_record(NEWS, "MSFT"), feed=NEWS_FEED)
        await peer.send({"action": "unsubscribe", "news": ["AAPL"]})
        await until(lambda: client.backlog.controls)
        del served.relay._flush  # type: ignore[method-assign]
        served.relay._flush(client, {})
        assert [one["T"] for one in await peer.receive()] == ["n"]
        assert await peer.acknowledged() == {"news": ["MSFT"]}


@on_both
async def test_a_refused_request_changes_nothing() -> None:
    async with serve() as served:
        peer = await served.log_in()
        await peer.subscribe(quotes=["AAPL"])
        served.upstream.refused = 405
        await peer.send({"action": "subscribe", "quotes": ["MSFT"]})
        assert await peer.receive() == error(405, "symbol limit exceeded")
        served.offer(QUOTES, quote("MSFT", 1), quote("AAPL", 2))
        assert numbers(await peer.receive()) == [2]
        served.upstream.refused = 0
        assert await peer.subscribe(quotes=["MSFT"]) == {"quotes": ["AAPL", "MSFT"]}


class Gate:
    """Lets the answers of the service wait until it opens."""

    def __init__(self) -> None:
        self._open = anyio.Event()

    async def __call__(self) -> None:
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


@on_both
async def test_the_acknowledgement_does_not_wait_long_for_the_feed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_ANSWER_S", 0.05)
    async with serve() as served:
        gate = Gate()
        served.upstream.answer = gate
        peer = await served.log_in()
        assert await peer.subscribe(quotes=["AAPL"]) == {"quotes": ["AAPL"]}
        served.offer(QUOTES, quote("AAPL", 1))
        assert numbers(await peer.receive()) == [1]
        gate.open()
        await until(lambda: served.upstream.wanted)
        assert await peer.unsubscribe(quotes=["AAPL"]) == {}


@on_both
async def test_a_late_refusal_takes_the_topics_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ANSWER_S", 0.05)
    async with serve() as served:
        peer, other = await served.log_in(), await served.log_in()
        await peer.subscribe(trades=["AAPL"])
        gate = Gate()
        served.upstream.answer, served.upstream.refused = gate, 405
        assert await peer.subscribe(quotes=["AAPL", "MSFT"])
        await other.subscribe(quotes=["AAPL"])
        assert await peer.unsubscribe(quotes=["MSFT"])
        await other.leave()
        await until(lambda: len(served.clients) == 1)
        gate.open()
        assert await peer.receive() == error(405, "symbol limit exceeded")
        assert "quotes" not in await peer.acknowledged()
        served.offer(QUOTES, quote("AAPL", 1))
        served.offer(TRADES, trade("AAPL", 2))
        assert numbers(await peer.receive()) == [2]
        assert dict(served.relay._wishes[STOCKS]._counts) == {Topic("trades", "AAPL"): 1}


@on_both
async def test_a_late_refusal_leaves_what_was_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_ANSWER_S", 0.05)
    async with serve() as served:
        peer = await served.log_in()
        gate = Gate()
        served.upstream.answer, served.upstream.refused = gate, 405
        assert await peer.subscribe(quotes=["AAPL"])
        assert await peer.unsubscribe(quotes=["AAPL"]) == {}
        assert await peer.subscribe(quotes=["AAPL"])
        asked = len(served.upstream.asked)

        async def answer() -> None:
            served.upstream.refused = 0

        served.upstream.answer = answer
        gate.open()
        await until(lambda: len(served.upstream.asked) > asked and served.upstream.wanted)
        (client,) = served.clients
        served.offer(QUOTES, quote("AAPL", 1))
        messages = await peer.take(1)
        while not numbers(messages):
            messages += await peer.receive()
        assert numbers(messages) == [1]
        assert Topic("quotes", "AAPL") in client.session.subscribed
        assert dict(served.relay._wishes[STOCKS]._counts) == {Topic("quotes", "AAPL"): 1}


@on_both
async def test_a_refusal_at_the_end_of_the_wait_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve() as served:
        peer = await served.log_in()
        cancelled: list[anyio.CancelScope] = []

        def move_on_after(_: float) -> anyio.CancelScope:
            cancelled.append(anyio.CancelScope())
            return cancelled[-1]

        async def answer() -> None:
            cancelled[0].cancel()  # the wait ends, and the refusal comes in the same turn

        monkeypatch.setattr(server.anyio, "move_on_after", move_on_after)
        served.upstream.answer, served.upstream.refused = answer, 405
        await peer.send({"action": "subscribe", "quotes": ["AAPL"]})
        assert await peer.receive() == error(405, "symbol limit exceeded")
        assert not served.relay._wishes[STOCKS]._counts


@on_both
@pytest.mark.parametrize(("login", "answer"), [("msgpack", "subscription"), ("json", "error")])
async def test_a_client_of_options_may_log_in_with_msgpack_that_it_has_not_named(
    login: str, answer: str
) -> None:
    """Alpaca's C# SDK sends msgpack, and has no way to set the header ``Content-Type``."""
    async with serve(served={OPTIONS: "indicative"}) as served:
        peer = await served.connect("/v1beta1/indicative")
        assert await peer.receive() == CONNECTED
        peer.encoding = login
        await peer.send(LOGIN)
        assert (await peer.receive())[0]["msg"] == "authenticated"
        await peer.send({"action": "subscribe", "trades": ["AAPL261218C00200000"]})
        assert (await peer.receive())[0]["T"] == answer


@on_both
async def test_what_comes_right_behind_the_feeds_answer_is_not_missed() -> None:
    quotes = [quote("AAPL", number) for number in (1, 2, 3)]
    async with serve() as served:
        peer = await served.log_in()
        await peer.subscribe(trades=["MSFT"])

        async def answer() -> None:
            served.offer(QUOTES, *quotes, quote("TSLA", 7))
            served.offer(TRADES, trade("MSFT", 1), trade("AAPL", 2))
            served.upstream.records[QUOTES, "AAPL"] = quotes[-1]
            served.upstream.records[QUOTES, "IBM"] = quote("IBM", 5)

        served.upstream.answer = answer
        await peer.send(
            {"action": "subscribe", "quotes": ["AAPL", "IBM"], "trades": ["MSFT", "AAPL"]}
        )
        before, *after = await peer.take(7)
        assert (before["T"], before["S"]) == ("t", "MSFT")  # it was subscribed already
        assert after[0]["T"] == "subscription"
        came = [(each["T"], each["S"], each.get("bp")) for each in after[1:]]
        assert came[:3] == [("q", "AAPL", quotes[n].bid) for n in range(3)]
        assert came[3:] == [("t", "AAPL", None), ("q", "IBM", quote("IBM", 5).bid)]
        served.offer(QUOTES, quote("AAPL", 4))
        assert [each["bp"] for each in await peer.take(1)] == [quote("AAPL", 4).bid]


@on_both
async def test_what_comes_before_a_refusal_is_not_sent() -> None:
    async with serve() as served:
        peer = await served.log_in()

        async def answer() -> None:
            served.offer(QUOTES, quote("AAPL", 1))

        served.upstream.answer, served.upstream.refused = answer, 405
        await peer.send({"action": "subscribe", "quotes": ["AAPL"]})
        assert await peer.receive() == error(405, "symbol limit exceeded")
        served.offer(QUOTES, quote("AAPL", 2))
        served.upstream.refused = 0
        assert (await peer.subscribe(quotes=["MSFT"]))["quotes"] == ["MSFT"]


@on_both
async def test_nothing_comes_twice_and_nothing_is_missed_between_latest_and_live() -> None:
    async with serve() as served:
        peer = await served.log_in()
        running = True

        async def feed() -> None:
            number = 0
            while running:
                number += 1
                served.offer(QUOTES, quote("AAPL", number))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed)
            for turn in range(20):
                names = [["AAPL"], ["*"], ["AAPL", "*"]][turn % 3]
                await peer.subscribe(quotes=names)
                got = numbers(await peer.take(50))
                assert got == list(range(got[0], got[0] + len(got)))
                await peer.unsubscribe(quotes=names)
            running = False
        (client,) = served.clients
        assert client.backlog.conflated == 0


@on_both
async def test_topics_of_clients_that_left_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes, "RELEASED_AFTER_S", 0.0)
    monkeypatch.setattr(server, "BEAT_S", 0.05)
    async with serve() as served:
        first, second = await served.log_in(), await served.log_in()
        await first.subscribe(quotes=["AAPL", "MSFT"])
        await second.subscribe(quotes=["AAPL"])
        await first.leave()
        await until(lambda: served.upstream.wanted == {Topic("quotes", "AAPL")})
        await second.close()
        await until(lambda: not served.upstream.wanted)


# Slow, silent and hostile clients


async def stuck(served: Served, encoding: str = "json", **channels: Any) -> tuple[Peer, Client]:
    """A client that has subscribed and does not read."""
    peer = await served.log_in(encoding=encoding)
    await peer.subscribe(**channels)
    return peer, served.clients[-1]


@on_both
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_a_client_that_does_not_read_trades_is_cut(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BEAT_S", 0.1)
    async with serve() as served:
        _, client = await stuck(served, encoding, trades=["AAPL"])
        good = await served.log_in(encoding=encoding)
        await good.subscribe(trades=["AAPL"])
        sent = 0
        while not client.cut:
            served.offer(TRADES, *(large_trade(sent + n) for n in range(500)))
            sent += 500
            assert numbers(await good.take(500)) == list(range(sent - 500, sent))
            assert sent < 100_000
        assert sent - client.sent <= fanout.MOST_BEHIND + 500
        served.offer(TRADES, large_trade(sent))
        assert numbers(await good.receive()) == [sent]
        await until(lambda: len(served.clients) == 1)
        status = served.relay.status()
        assert (status.cut, len(status.clients)) == (1, 1)
        assert status.messages == client.sent + sent + 1


@on_both
async def test_a_client_that_is_cut_gets_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "MOST_WAITING", 10)
    monkeypatch.setattr(fanout, "MOST_BEHIND", 10)
    async with serve() as served:
        peer, client = await stuck(served, trades=["AAPL"])
        while not client.cut:
            served.offer(TRADES, *(large_trade(number) for number in range(100)))
            await anyio.lowlevel.checkpoint()
        messages = await peer.rest()
        assert messages[-1:] == error(407, "slow client")
        assert peer.close_code == 1008
        await until(lambda: not served.clients)


@on_both
async def test_a_slow_client_gets_the_newest_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "MOST_WAITING", 100)
    async with serve() as served:
        peer, client = await stuck(served, quotes=["*"])
        number = 0
        while client.backlog.conflated < 500:
            served.offer(QUOTES, *(quote(f"S{n % 50}", number + n) for n in range(100)))
            number += 100
            await anyio.lowlevel.checkpoint()
        conflated = client.backlog.conflated
        got = numbers(await peer.take(number - conflated))
        assert got[-1] == number - 1
        assert len(set(got)) == len(got)
        assert not client.cut
        status = served.relay.status()
        assert status.conflated == conflated
        served.offer(QUOTES, quote("A", number))
        assert numbers(await peer.receive()) == [number]
        await peer.close()
        await until(lambda: not served.clients)
        assert served.relay.status().conflated == conflated


@on_both
async def test_a_client_that_reads_slowly_gets_everything() -> None:
    async with serve() as served:
        sock = await served.dial(SO_RCVBUF=2_048)
        sock.send(REQUEST % (b"/v2/iex", b"APCA-API-KEY-ID: a\r\nAPCA-API-SECRET-KEY: b\r\n"))
        await until(lambda: served.clients and served.clients[0].session.authenticated)
        sock.send(Frame(Opcode.TEXT, b'{"action":"subscribe","trades":["*"]}').serialize(mask=True))
        (client,) = served.clients
        await until(lambda: client.session.subscribed)
        for start in range(0, 2_000, 100):
            served.offer(TRADES, *(large_trade(start + n) for n in range(100)))
        got, searched = bytearray(), 0
        while got.find(b'"i":1999,', searched) < 0:
            searched = max(0, len(got) - 10)
            await anyio.wait_readable(sock)
            got += sock.recv(777)
        assert got.count(b'"T":"t"') == 2_000
        sock.close()
        await until(lambda: not served.clients)


async def flood(peer: Peer, data: bytes) -> None:
    """Send until the relay has not read for a while."""
    while True:
        with anyio.move_on_after(0.2) as scope:
            await peer.stream.send(data)
        if scope.cancelled_caught:
            return


@on_both
async def test_pings_are_answered_and_a_flood_of_them_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_REQUESTS_PER_S", 10**9)
    async with serve() as served:
        peer = await served.log_in()
        await peer.send_frame(Frame(Opcode.PING, b"hello"))
        frame = await peer.frame()
        assert frame is not None
        assert (frame.opcode, bytes(frame.data)) == (Opcode.PONG, b"hello")
        (client,) = served.clients
        await flood(peer, Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * 1_000)
        assert len(client.websocket.line._unsent) < 1_000_000
        other = await served.log_in()
        assert await other.subscribe(quotes=["AAPL"])


@on_both
async def test_a_pong_that_did_not_fit_is_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_REQUESTS_PER_S", 10**9)
    # Else the pongs of all pings that reach the server may fit: a peer whose buffer is full drops
    # the acknowledgements too, without which it sends no more.
    monkeypatch.setattr(websocket, "_SEND_BUFFER_BYTES", 4_096)
    async with serve() as served:
        peer = await served.log_in()
        (client,) = served.clients
        pings = 10_000
        async with anyio.create_task_group() as tasks:
            flood = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * pings
            tasks.start_soon(peer.stream.send, flood)
            await until(lambda: client.websocket.line.blocked)
            # Through its small buffer, a few kilobytes would come each fifth of a second.
            sock = peer.stream.extra(SocketAttribute.raw_socket)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            for _ in range(pings):
                frame = await peer.frame()
                assert frame is not None
                assert frame.opcode is Opcode.PONG


@on_both
async def test_empty_fragments_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_REQUESTS_PER_S", 10**9)
    async with serve() as served:
        peer = await served.log_in()
        (client,) = served.clients
        await peer.send_frame(Frame(Opcode.TEXT, b'{"action":', fin=False))
        empty = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True)
        await peer.stream.send(empty * 10_000)
        await peer.send_frame(Frame(Opcode.CONT, b'"subscribe","quotes":["AAPL"]}'))
        assert await peer.acknowledged() == {"quotes": ["AAPL"]}
        assert client.websocket.frames == 10_002


@on_both
async def test_a_large_request_may_come_in_fragments() -> None:
    async with serve() as served:
        peer = await served.log_in()
        names = [f"S{n}" for n in range(20_000)]
        payload = ('{"action":"subscribe","quotes":["' + '","'.join(names) + '"]}').encode()
        parts = [payload[start : start + 32_768] for start in range(0, len(payload), 32_768)]
        for place, part in enumerate(parts):
            opcode = Opcode.CONT if place else Opcode.TEXT
            await peer.send_frame(Frame(opcode, part, fin=place == len(parts) - 1))
        assert await peer.acknowledged() == {"quotes": names}


@on_both
async def test_many_requests_are_answered_slowly_and_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_REQUESTS_PER_S", 10)
    monkeypatch.setattr(server, "BEAT_S", 0.05)
    async with serve() as served:
        peer = await served.log_in()
        seconds = 0
        beat = served.relay.heartbeat.beat

        def count(*args: Any) -> None:
            nonlocal seconds
            seconds += 1
            beat(*args)

        monkeypatch.setattr(served.relay.heartbeat, "beat", count)
        request = Frame(Opcode.TEXT, b'{"action":"x"}').serialize(mask=True)
        await peer.stream.send(request * 100)
        assert await peer.take(100) == error(400, "invalid syntax") * 100
        assert seconds >= 8


@on_both
async def test_a_client_that_does_not_read_its_answers_is_not_read() -> None:
    async with serve() as served:
        peer = await served.log_in()
        (client,) = served.clients
        names = [f"S{n}" for n in range(20_000)]
        await peer.subscribe(quotes=names)
        request = Frame(Opcode.TEXT, b'{"action":"subscribe","bars":[]}').serialize(mask=True)
        await flood(peer, request * 1_000)
        assert client.backlog.controls <= server._MOST_ANSWERS + 1
        other = await served.log_in()
        assert await other.subscribe(quotes=["AAPL"])


@on_both
async def test_an_oversized_message_ends_the_connection_with_its_code() -> None:
    async with serve() as served:
        for logged_in, size in [(False, 20_000), (True, MOST_MESSAGE_BYTES + 1)]:
            peer = await (served.log_in() if logged_in else served.connect())
            await peer.send_frame(Frame(Opcode.TEXT, b" " * size))
            await peer.rest()
            assert peer.close_code == 1009
        await until(lambda: not served.clients)


@on_both
async def test_a_compressed_bomb_ends_the_connection() -> None:
    async with serve() as served:
        peer = await served.log_in(deflate=ClientPerMessageDeflateFactory())
        compressor = zlib.compressobj(wbits=-15)
        bomb = compressor.compress(b" " * 100_000_000) + compressor.flush(zlib.Z_SYNC_FLUSH)
        head = b"\xc1\xff" + (len(bomb) - 4).to_bytes(8, "big") + bytes(4)
        await peer.stream.send(head + bomb[:-4])
        await peer.rest()
        assert peer.close_code == 1009


GARBLED = {  # with a mask of zeros
    "unmasked": (b"\x81\x02{}", 1002),
    "unexpected continuation": (b"\x80\x82\0\0\0\0{}", 1002),
    "reserved bit": (b"\xc1\x82\0\0\0\0{}", 1002),
    "reserved opcode": (b"\x83\x80\0\0\0\0", 1002),
    "long ping": (b"\x89\xfe\x00\x7e\0\0\0\0", 1002),
    "half a close code": (b"\x88\x81\0\0\0\0x", 1002),
    "close reason that is not UTF-8": (b"\x88\x83\0\0\0\0\x03\xe8\xff", 1007),
    "close without a code": (b"\x88\x80\0\0\0\0", 1005),
    "close with a code of its own": (b"\x88\x85\0\0\0\0\x0f\xa0bye", 4000),
}


@on_both
@pytest.mark.parametrize(("data", "code"), GARBLED.values(), ids=GARBLED)
async def test_a_garbled_frame_ends_the_connection_with_its_code(data: bytes, code: int) -> None:
    async with serve() as served:
        peer = await served.log_in()
        await peer.stream.send(data + b"\x00" * 50_000)
        await peer.rest()
        assert peer.close_code == code
        await until(lambda: not served.clients)


@on_both
async def test_a_client_that_ends_only_its_direction_is_let_go() -> None:
    async with serve() as served:
        peer = await served.log_in()
        stream: Any = peer.stream
        await stream.send_eof()
        await peer.rest()
        await until(lambda: not served.clients)


@on_both
async def test_a_client_that_does_not_close_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CLOSE_S", 0.1)
    monkeypatch.setattr(server, "BEAT_S", 0.05)
    async with serve(keys={"key": "secret"}) as served:
        sock = await served.dial()
        sock.send(REQUEST % (b"/v2/iex", b"APCA-API-KEY-ID: a\r\nAPCA-API-SECRET-KEY: b\r\n"))
        await until(lambda: served.relay._number)
        await until(lambda: not served.relay._connections)
        sock.close()


@on_both
async def test_a_client_that_resets_its_connection_is_let_go() -> None:
    async with serve() as served:
        peer = await served.log_in()
        await peer.subscribe(quotes=["AAPL"])
        raw = peer.stream.extra(anyio.abc.SocketAttribute.raw_socket)  # type: ignore[attr-defined]
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        await peer.leave()
        served.offer(QUOTES, quote())
        await until(lambda: not served.clients)
        assert not served.relay._fan_outs[STOCKS]._named


# What must never fail


@on_both
async def test_a_record_that_cannot_be_sent_does_not_fail_the_router(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as served:
        peer = await served.log_in()
        await peer.subscribe(quotes=["AAPL"])

        def fail(*_: Any) -> Any:
            raise OverflowError

        with caplog.at_level(logging.INFO, "mdservice"):
            with monkeypatch.context() as patch:
                patch.setattr(fanout, "messages_of", fail)
                served.offer(QUOTES, quote("AAPL", 1))
            with monkeypatch.context() as patch:
                patch.setattr(Client, "receive", fail)
                served.offer(QUOTES, quote("AAPL", 2))
        assert events(caplog) == ["relay_offer_failed"] * 2
        served.offer(QUOTES, quote("AAPL", 3))
        assert numbers(await peer.receive()) == [3]


@on_both
async def test_a_frame_that_cannot_be_made_ends_its_client_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve() as served:
        peer, other = await served.log_in(), await served.log_in(encoding="msgpack")
        await peer.subscribe(quotes=["AAPL"])
        await other.subscribe(quotes=["AAPL"])
        made = server.payload

        def payload(messages: Any, encoding: Any) -> bytes:
            if encoding == "json":
                raise OverflowError
            return made(messages, encoding)

        monkeypatch.setattr(server, "payload", payload)
        served.offer(QUOTES, quote("AAPL", 1))
        assert numbers(await other.receive()) == [1]
        assert await peer.receive() == []
        await until(lambda: len(served.clients) == 1)
        served.offer(QUOTES, quote("AAPL", 2))
        assert numbers(await other.receive()) == [2]


@on_both
async def test_what_fails_in_one_connection_ends_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve() as served:
        peer, other = await served.log_in(), await served.log_in()
        (client, _) = served.clients

        def fail(_: Any) -> None:
            raise KeyError

        monkeypatch.setattr(client.session, "receive", fail)
        await peer.send(LOGIN)
        assert await peer.receive() == []
        assert await other.subscribe(quotes=["AAPL"])
        assert len(served.clients) == 1


# Restart and stop


@on_both
async def test_after_a_restart_clients_reconnect_and_the_old_topics_are_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wishes, "RELEASED_AFTER_S", 0.3)
    monkeypatch.setattr(server, "BEAT_S", 0.05)
    async with serve() as served:
        relay = served.relay
        peer = await served.log_in()
        await peer.subscribe(quotes=["AAPL", "MSFT"])
        served.offer(QUOTES, quote("AAPL", 1))
        assert numbers(await peer.receive()) == [1]
        assert relay._tasks is not None
        relay._tasks.cancel_scope.cancel()
        assert await peer.receive() == []
        await until(lambda: relay._tasks is None)
        served.offer(QUOTES, quote("AAPL", 2))  # meanwhile
        assert (relay._connections, len(relay.status().clients)) == (0, 0)
        assert relay.status().messages == 1
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: relay.run(task_status=task_status))
            again = await served.log_in()
            await again.subscribe(quotes=["AAPL"])
            assert numbers(await again.receive()) == [2]
            served.offer(QUOTES, quote("AAPL", 3))
            assert numbers(await again.receive()) == [3]
            await until(lambda: served.upstream.wanted == {Topic("quotes", "AAPL")})
            tasks.cancel_scope.cancel()


@on_both
async def test_stop_sends_what_waits_and_says_that_it_goes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_CLOSE_S", 40.0)
    async with serve() as served:
        peer = await served.log_in()
        await peer.subscribe(trades=["AAPL"])
        served.offer(TRADES, *(large_trade(number) for number in range(2_000)))
        got: list[Any] = []

        async def read() -> None:
            got.extend(await peer.rest())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await served.relay.stop()
        assert numbers(got) == list(range(2_000))
        assert peer.close_code == 1001
        assert served.clients == []


@on_both
async def test_stop_does_not_wait_long_for_clients_that_do_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_CLOSE_S", 0.2)
    async with serve() as served:
        _, client = await stuck(served, quotes=["*"])
        silent = await served.dial()
        good = await served.log_in()
        while not client.websocket.line.blocked:
            served.offer(QUOTES, *(quote(f"S{n}", n) for n in range(500)))
            await anyio.lowlevel.checkpoint()
        flooding = True

        async def flood() -> None:
            while flooding:
                served.offer(QUOTES, *(quote(f"S{n}", n) for n in range(100)))
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            tasks.start_soon(good.rest)
            await served.relay.stop()
            flooding = False
        assert good.close_code == 1001
        await until(lambda: served.relay._connections == 0)
        silent.close()


@on_both
async def test_stop_of_a_relay_that_does_not_run_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CLOSE_S", 0.01)
    async with serve() as served:
        assert served.relay._tasks is not None
        served.relay._tasks.cancel_scope.cancel()
        await until(lambda: served.relay._tasks is None)
        await served.relay.stop()


# Seen from outside


@on_both
async def test_the_status_has_every_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BEAT_S", 0.05)
    async with serve(served={STOCKS: None, OPTIONS: None}) as served:
        peer = await served.log_in(headers={"User-Agent": "bot"})
        await served.connect("/v1beta1/opra", encoding="msgpack")
        await peer.subscribe(quotes=["AAPL"], bars=["*"])
        served.offer(QUOTES, quote("AAPL", 1), quote("AAPL", 2))
        await peer.take(2)
        status = served.relay.status()
        first, second = status.clients
        assert (first.name, first.path, first.encoding) == ("bot (1)", "/v2/iex", "json")
        assert (first.symbols, first.sent, first.backlog, first.conflated) == (2, 2, 0, 0)
        assert first.connected_s >= second.connected_s >= 0
        assert first.address.startswith("127.0.0.1:")
        assert (second.path, second.encoding, second.symbols) == ("/v1beta1/opra", "msgpack", 0)
        assert (status.messages, status.cut, status.conflated) == (2, 0, 0)
        assert "secret" not in repr(status)

        def sending() -> bool:
            served.offer(QUOTES, quote("AAPL", 3))
            return served.relay.status().clients[0].rate > 0

        await until(sending)
        await until(lambda: served.relay.status().clients[0].rate == 0)


def test_an_address_is_shown_as_it_is_typed() -> None:
    assert server._shown(("::1", 80, 0, 0)) == "[::1]:80"
    assert server._shown(("127.0.0.1", 80)) == "127.0.0.1:80"


@on_both
async def test_only_other_machines_get_compressed_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as served:
        sock = await served.dial()
        assert server._is_loopback(sock)
        sock.close()
        assert server._is_loopback(sock)
        monkeypatch.setattr(server, "_is_loopback", lambda _: False)
        peer = await served.log_in(deflate=ClientPerMessageDeflateFactory())
        plain = await served.log_in()
        await peer.subscribe(trades=["*"])
        await plain.subscribe(trades=["*"])
        served.offer(TRADES, *(large_trade(number) for number in range(100)))
        assert numbers(await peer.take(100)) == list(range(100))
        assert numbers(await plain.take(100)) == list(range(100))
