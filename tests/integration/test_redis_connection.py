"""One connection on the event loop: opening, waiting, and how a wait ends."""

from __future__ import annotations

import gc
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import hiredis
import pytest

from mdservice.client.connection import CLIENT_NAME, read_keys
from mdservice.client.discovery import GivenServer
from mdservice.client.event_log import START, look, read_chunk
from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.model.kinds import QUOTES, RecordDecoder
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.replies import is_error
from mdservice.redis_io.store import RedisPriceStore
from tests.integration.conftest import patient

LIMIT_S = 60.0
BACKENDS = ["trio", "asyncio"]
SHOWN = "redis://db:6379/0"

on_both_loops = pytest.mark.parametrize("backend", BACKENDS)


def run(backend: str, main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            await main()

    anyio.run(limited, backend=backend)


async def opened(url: str, timeout_s: float = LIMIT_S) -> RedisConnection:
    return await RedisConnection.open(RedisAddress(url, timeout_s=timeout_s), "test")


class Moody:
    """A socket that, as one with TLS, first wants something else."""

    def __init__(self, sock: socket.socket, **wants: list[type[ssl.SSLError]]) -> None:
        self._socket = sock
        self._wants = wants
        self.calls: list[str] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        self._socket.setblocking(flag)

    def close(self) -> None:
        self._socket.close()

    def send(self, data: Any) -> int:
        return int(self._call("send", data))

    def recv_into(self, buffer: Any) -> int:
        return int(self._call("recv_into", buffer))

    def _call(self, name: str, argument: Any) -> Any:
        self.calls.append(name)
        if self._wants.get(name):
            raise self._wants[name].pop(0)
        return getattr(self._socket, name)(argument)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


# One question, its answers.


@on_both_loops
def test_sends_more_than_the_system_takes_at_once(pair: Any, backend: str) -> None:
    ours, theirs = pair
    data = b"x" * 4_000_000

    async def serve() -> None:
        left = len(data)
        while left:
            await anyio.wait_readable(theirs)
            left -= len(theirs.recv(1 << 20))
        theirs.send(b"+OK\r\n")

    async def main() -> None:
        connection = RedisConnection(ours, RedisAddress(SHOWN, timeout_s=LIMIT_S))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            assert await connection.exchange(data, 1) == [b"OK"]

    run(backend, main)


@on_both_loops
def test_a_send_that_first_has_to_read_waits_for_that(pair: Any, backend: str) -> None:
    ours, theirs = pair
    moody = Moody(ours, send=[ssl.SSLWantReadError])

    async def main() -> None:
        connection = RedisConnection(moody, RedisAddress(SHOWN, timeout_s=LIMIT_S))  # type: ignore[arg-type]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.exchange, b"PING\r\n", 1)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert moody.calls == ["send"]  # it can be written to, which is not the point
            theirs.send(b"+PONG\r\n")

    run(backend, main)
    assert moody.calls[:2] == ["send", "send"]


@on_both_loops
@pytest.mark.parametrize("method", ["exchange", "receive"])
def test_a_read_that_first_has_to_write_waits_for_that(
    pair: Any, backend: str, method: str
) -> None:
    ours, theirs = pair
    moody = Moody(ours, recv_into=[ssl.SSLWantWriteError])
    theirs.send(b"+PONG\r\n")

    async def main() -> None:
        connection = RedisConnection(moody, RedisAddress(SHOWN, timeout_s=LIMIT_S))  # type: ignore[arg-type]
        if method == "exchange":
            assert await connection.exchange(b"PING\r\n", 1) == [b"PONG"]
        else:
            assert await connection.receive(LIMIT_S, b"PING\r\n") == [b"PONG"]

    run(backend, main)
    assert moody.calls == ["send", "recv_into", "recv_into"]


@on_both_loops
@pytest.mark.parametrize("method", ["exchange", "receive"])
def test_closing_ends_a_call_that_waits(pair: Any, backend: str, method: str) -> None:
    ours, _ = pair

    async def main() -> None:
        connection = RedisConnection(ours, RedisAddress(SHOWN, timeout_s=LIMIT_S * 2))

        async def call() -> None:
            with pytest.raises(StoreUnavailable):
                if method == "exchange":
                    await connection.exchange(b"PING\r\n", 1)
                else:
                    await connection.receive(LIMIT_S * 2)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            connection.close()
            connection.close()
        with pytest.raises(StoreUnavailable):
            await connection.call(pack(b"PING"))

    run(backend, main)


@on_both_loops
def test_a_server_that_is_mute_is_given_up(pair: Any, backend: str) -> None:
    ours, _ = pair

    async def main() -> None:
        connection = RedisConnection(ours, RedisAddress(SHOWN, timeout_s=0.05))
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await connection.exchange(b"PING\r\n", 1)

    run(backend, main)


# What the server says of its own accord.


@on_both_loops
def test_receives_what_was_published_and_what_was_asked_for(backend: str, valkey: Any) -> None:
    async def main() -> None:
        with closing(await opened(valkey.url)) as connection:
            assert await connection.call(pack(b"SUBSCRIBE", b"c")) == [[b"subscribe", b"c", 1]]
            with valkey.client() as client:
                for number in range(3):
                    client.publish("c", number)
            heard = await connection.receive(LIMIT_S, pack(b"PING", b"x"))
            while len(heard) < 4:
                heard += await connection.receive(LIMIT_S)
            assert heard == [[b"message", b"c", b"%d" % n] for n in range(3)] + [[b"pong", b"x"]]

    run(backend, main)


@on_both_loops
def test_what_came_along_with_an_answer_is_kept(backend: str, valkey: Any) -> None:
    async def main() -> None:
        with closing(await opened(valkey.url)) as connection:
            two = pack(b"SUBSCRIBE", b"c", b"d")  # one command with two replies
            assert await connection.call(two) == [[b"subscribe", b"c", 1]]
            assert await connection.receive(LIMIT_S) == [[b"subscribe", b"d", 2]]

    run(backend, main)


@on_both_loops
def test_hears_nothing_within_the_time(backend: str, valkey: Any) -> None:
    async def main() -> None:
        with closing(await opened(valkey.url)) as connection:
            await connection.call(pack(b"SUBSCRIBE", b"c"))
            started_s = anyio.current_time()
            assert await connection.receive(0.1) == []
            assert 0.1 <= anyio.current_time() - started_s < LIMIT_S / 2
            assert await connection.call(pack(b"PING")) == [[b"pong", b""]]  # still usable

    run(backend, main)


@on_both_loops
def test_an_error_is_heard_like_anything_else(backend: str, valkey: Any) -> None:
    async def main() -> None:
        with closing(await opened(valkey.url)) as connection:
            await connection.call(pack(b"SUBSCRIBE", b"c"))
            (reply,) = await connection.receive(LIMIT_S, pack(b"GET", b"x"))
            assert is_error(reply)

    run(backend, main)


@on_both_loops
def test_half_a_message_is_waited_for_and_kept(pair: Any, backend: str) -> None:
    ours, theirs = pair

    async def main() -> None:
        connection = RedisConnection(ours, RedisAddress(SHOWN, timeout_s=LIMIT_S))
        theirs.sendall(b"*1\r\n$3\r\n")
        assert await connection.receive(0.05) == []
        theirs.sendall(b"abc\r\n*1\r\n$1\r\n")
        assert await connection.receive(LIMIT_S) == [[b"abc"]]
        theirs.sendall(b"d\r\n")
        assert await connection.receive(LIMIT_S) == [[b"d"]]

    run(backend, main)


@on_both_loops
def test_a_cancelled_wait_loses_nothing(pair: Any, backend: str) -> None:
    ours, theirs = pair

    async def main() -> None:
        connection = RedisConnection(ours, RedisAddress(SHOWN, timeout_s=LIMIT_S))
        theirs.sendall(b"*1\r\n$3\r\na")
        with anyio.move_on_after(0.05) as limit:
            await connection.receive(LIMIT_S)
        assert limit.cancelled_caught
        theirs.sendall(b"bc\r\n")
        assert await connection.receive(LIMIT_S) == [[b"abc"]]

    run(backend, main)


@on_both_loops
def test_bytes_that_trickle_do_not_make_it_wait_longer(pair: Any, backend: str) -> None:
    ours, theirs = pair

    async def trickle() -> None:
        while True:
            theirs.sendall(b"x")
            await anyio.sleep(0.01)

    async def main() -> None:
        connection = RedisConnection(ours, RedisAddress(SHOWN, timeout_s=LIMIT_S))
        theirs.sendall(b"$1000\r\n")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trickle)
            started_s = anyio.current_time()
            assert await connection.receive(0.2) == []
            assert anyio.current_time() - started_s < LIMIT_S / 2
            tasks.cancel_scope.cancel()

    run(backend, main)


@on_both_loops
def test_what_came_while_the_event_loop_was_held_up_counts(pair: Any, backend: str) -> None:
    ours, theirs = pair

    async def hold_up() -> None:
        time.sleep(0.2)  # that is the point
        theirs.sendall(b"+PONG\r\n")

    async def main() -> None:
        connection = RedisConnection(ours, RedisAddress(SHOWN, timeout_s=LIMIT_S))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold_up)
            assert await connection.receive(0.1) == [b"PONG"]

    run(backend, main)


@on_both_loops
def test_a_flood_leaves_the_other_tasks_their_turn(pair: Any, backend: str) -> None:
    ours, theirs = pair
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        connection = RedisConnection(ours, RedisAddress(SHOWN, timeout_s=LIMIT_S))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            for _ in range(100):
                theirs.sendall(b"+x\r\n")
                assert await connection.receive(LIMIT_S) == [b"x"]
            tasks.cancel_scope.cancel()

    run(backend, main)
    assert turns >= 50


@on_both_loops
@pytest.mark.parametrize("end", ["close", "garbage"])
def test_a_connection_that_ends_or_talks_nonsense_is_lost(
    pair: Any, backend: str, end: str
) -> None:
    ours, theirs = pair

    async def main() -> None:
        connection = RedisConnection(ours, RedisAddress(SHOWN, timeout_s=LIMIT_S))
        if end == "garbage":
            theirs.sendall(b"HTTP/1.1 200\r\n")
        else:
            theirs.close()
        with pytest.raises(StoreUnavailable, match=f"{SHOWN} was lost"):
            await connection.receive(LIMIT_S)

    run(backend, main)


# Opening.


class Server:
    """Answers each command of a connection by a script; remembers what was said.

    Args:
        answers: By a command's first word; anything else is answered ``+OK``.
    """

    def __init__(self, path: Path, **answers: bytes) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.setblocking(False)
        self._answers = answers
        self.said: list[list[bytes]] = []

    async def serve(self) -> None:
        with self._listener:
            await anyio.wait_readable(self._listener)
            client, _ = self._listener.accept()
            with client:
                reader = hiredis.Reader(notEnoughData=None)
                while True:
                    await anyio.wait_readable(client)
                    if not (data := client.recv(65_536)):
                        return
                    reader.feed(data)
                    while (command := reader.gets()) is not None:
                        self.said.append(command)
                        name = command[0].decode()
                        answer = self._answers.get(f"{name}{len(command) - 1}")
                        client.sendall(answer or self._answers.get(name, b"+OK\r\n"))


@on_both_loops
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", []),
        ("?password=secret", [[b"AUTH", b"secret"]]),
        ("?username=me&password=secret&db=3", [[b"AUTH", b"me", b"secret"]]),
        ("?username=me", [[b"AUTH", b"me", b""]]),
        ("?protocol=3&client_name=x&health_check_interval=1&retry_on_timeout=yes", []),
    ],
)
def test_says_who_it_is_and_nothing_else(
    tmp_path: Path, backend: str, query: str, said: list[list[bytes]]
) -> None:
    async def main() -> None:
        server = Server(tmp_path / "s")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            (await opened(f"unix://{tmp_path}/s{query}")).close()
        database = [[b"SELECT", b"3"]] if "db=3" in query else []
        assert server.said == [*said, [b"CLIENT", b"SETNAME", b"test"], *database]

    run(backend, main)


def test_a_server_that_knows_no_users_gets_the_password_alone(tmp_path: Path) -> None:
    async def main() -> None:
        wrong = b"-ERR wrong number of arguments for 'auth' command\r\n"
        server = Server(tmp_path / "s", AUTH2=wrong)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            (await opened(f"unix://me:secret@{tmp_path}/s")).close()
        assert server.said[:2] == [[b"AUTH", b"me", b"secret"], [b"AUTH", b"secret"]]

    run("trio", main)


@pytest.mark.parametrize(
    ("answers", "error", "text", "reconnect"),
    [
        ({"AUTH": b"-WRONGPASS invalid pair.\r\n"}, StoreRefused, "login: invalid pair;", False),
        ({"AUTH": b"-ERR AUTH without any password\r\n"}, StoreRefused, "refused the login", False),
        ({"AUTH": b"-LOADING it is loading\r\n"}, StoreRefused, "LOADING it is", True),
        ({"SELECT": b"-ERR DB index is out of range\r\n"}, StoreRefused, "DB index", False),
        ({"SELECT": b"-NOAUTH Authentication required.\r\n"}, StoreRefused, "REDIS_URL", True),
        ({"CLIENT": b"-NOPERM no\r\n"}, None, "", False),
        ({"CLIENT": b"-ERR max number of clients reached\r\n"}, StoreUnavailable, "max", None),
        ({"AUTH": b"-ERR max number of clients reached\r\n"}, StoreUnavailable, "max", None),
        ({"CLIENT": b"-DENIED protected mode\r\n"}, StoreUnavailable, "protected mode", None),
        ({"AUTH": b"HTTP/1.1 400 Bad Request\r\n"}, StoreUnavailable, "cannot connect", None),
    ],
)
def test_a_login_that_is_refused(
    tmp_path: Path,
    answers: dict[str, bytes],
    error: type[Exception] | None,
    text: str,
    reconnect: bool | None,
) -> None:
    async def main() -> None:
        server = Server(tmp_path / "s", **answers)
        url = f"unix://me:hunter2@{tmp_path}/s?db=1"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            if error is None:
                (await opened(url)).close()
                return
            with pytest.raises(error) as caught:
                await opened(url)
        assert text in str(caught.value)
        assert f"unix://{tmp_path}/s?db=1" in str(caught.value)
        assert "hunter2" not in str(caught.value)
        if reconnect is not None:
            assert caught.value.reconnect == reconnect  # type: ignore[attr-defined]

    run("trio", main)


async def ask_gateway(url: str) -> None:
    calls = RedisCalls(GivenServer(url))
    try:
        await calls.prices(["AA"])
    finally:
        calls.close()


async def ask_keys(url: str) -> None:
    with closing(await opened(url)) as connection:
        await read_keys(connection, QUOTES, ["AA"], RecordDecoder(QUOTES), RedisNames())


async def ask_all_keys(url: str) -> None:
    with closing(await opened(url)) as connection:
        await read_keys(connection, QUOTES, [], RecordDecoder(QUOTES), RedisNames())


async def ask_log(url: str) -> None:
    with closing(await opened(url)) as connection:
        await look(connection, b"log")


async def ask_entries(url: str) -> None:
    with closing(await opened(url)) as connection:
        await read_chunk(connection, b"log", START)


async def ask_latest(url: str) -> None:
    store = RedisPriceStore(url, instance="one")
    try:
        await store.connect()
        await store.read_latest(QUOTES, ["AA"])
    finally:
        await store.aclose()


@pytest.mark.parametrize("answer", [b"+OK\r\n", b":5\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n"])
@pytest.mark.parametrize("command", ["MGET", "SCAN", "XINFO", "XREAD"])
def test_what_answers_otherwise_than_redis_counts_as_unavailable(
    tmp_path: Path, command: str, answer: bytes
) -> None:
    asks: dict[str, list[Callable[[str], Awaitable[None]]]] = {
        "MGET": [ask_gateway, ask_keys, ask_latest],
        "SCAN": [ask_all_keys],
        "XINFO": [ask_log],
        "XREAD": [ask_entries],
    }

    async def main() -> None:
        for number, ask in enumerate(asks[command]):
            server = Server(tmp_path / str(number), **{command: answer})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.serve)
                with pytest.raises(StoreUnavailable, match="does not answer as Redis does"):
                    await ask(f"unix://{tmp_path}/{number}")
                tasks.cancel_scope.cancel()

    run("trio", main)


@on_both_loops
def test_an_address_without_a_server_is_reported_in_whole_sentences(backend: str) -> None:
    async def main() -> None:
        with pytest.raises(StoreUnavailable) as told:
            await opened("unix:///nowhere/valkey.sock")
        assert "at unix:///nowhere/valkey.sock: No such file or directory;" in str(told.value)
        assert "MDSERVICE_REDIS_URL" in str(told.value)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            with pytest.raises(StoreUnavailable, match="Connection refused; start a server"):
                await opened(f"redis://127.0.0.1:{free.getsockname()[1]}")

    run(backend, main)


@on_both_loops
def test_each_address_of_a_name_is_tried(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "db.example"
        kind = socket.AF_INET, socket.SOCK_STREAM, 0, ""
        return [(*kind, ("127.0.0.1", 1)), (*kind, ("127.0.0.1", port))]

    async def main() -> None:
        monkeypatch.setattr(anyio, "getaddrinfo", both)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with anyio.create_task_group() as tasks:
                url = f"redis://db.example:{listener.getsockname()[1]}"
                tasks.start_soon(answer_once, listener)
                (await opened(url)).close()

    run(backend, main)


@on_both_loops
def test_a_resolver_that_does_not_answer_is_given_up(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any, **__: Any) -> None:
        await anyio.sleep_forever()

    async def main() -> None:
        monkeypatch.setattr(anyio, "getaddrinfo", never)
        with pytest.raises(StoreUnavailable, match=r"db\.example:6379/0: no answer in time"):
            await opened("redis://db.example", 0.05)

    run(backend, main)


async def answer_once(listener: socket.socket) -> None:
    listener.setblocking(False)
    await anyio.wait_readable(listener)
    client, _ = listener.accept()
    with client:
        client.sendall(b"+OK\r\n")
        client.setblocking(False)
        while True:
            await anyio.wait_readable(client)
            if not client.recv(1_000):
                return


@on_both_loops
def test_a_server_whose_queue_of_connections_is_full_is_waited_for(
    tmp_path: Path, backend: str
) -> None:
    path = tmp_path / "s"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(str(path))
            listener.listen(0)
            first.connect(str(path))

            async def make_room() -> None:
                await anyio.sleep(0.05)
                listener.accept()[0].close()
                await answer_once(listener)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(make_room)
                (await opened(f"unix://{path}", LIMIT_S)).close()

    run(backend, main)


@on_both_loops
def test_a_server_that_says_nothing_has_a_limit_for_all_of_it(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "s"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            address = RedisAddress(f"unix://{path}", timeout_s=LIMIT_S)
            with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.05 s"):
                await RedisConnection.open(address, "test", limit_s=0.05)
            address = RedisAddress(f"unix://{path}", timeout_s=0.05)
            with pytest.raises(StoreUnavailable, match="no answer in time"):
                await RedisConnection.open(address, "test")

    run(backend, main)


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_calls_that_are_dropped_end_their_connection(valkey: Any, backend: str | None) -> None:
    """Whether the last reference goes within an event loop or after its end."""

    async def ask() -> RedisCalls:
        calls = RedisCalls(GivenServer(valkey.url))
        assert await calls.prices(["AAPL"]) == [None]
        return calls

    async def ask_and_drop() -> None:
        await ask()
        gc.collect()

    with valkey.client() as client:
        # The server is shared: others' connections may be open.
        before = {one["id"] for one in client.client_list()}
        if backend is None:
            anyio.run(ask)
        else:
            run(backend, ask_and_drop)
        gc.collect()
        left = [one for one in client.client_list() if one["id"] not in before]
    assert [one for one in left if one["name"] == CLIENT_NAME] == []
