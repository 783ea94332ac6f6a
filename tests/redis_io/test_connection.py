"""Redis URLs: what is shown of them, and which are refused."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from mdservice.errors import ConfigurationError, StoreUnavailable
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.replies import describe_refusal, refusal
from mdservice.redis_io.store import RedisPriceStore


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost:6379/0"),
        ("redis://", "redis://localhost:6379/0"),
        ("redis://db.example:7000/3", "redis://db.example:7000/3"),
        ("redis://me:hunter2@db:6379/1", "redis://db:6379/1"),
        ("redis://:hunter2@db", "redis://db:6379/0"),
        ("rediss://me:hunter2@db?ssl_cert_reqs=none", "rediss://db:6379/0"),
        ("redis://[::1]:6380/2", "redis://[::1]:6380/2"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix://me@/run/redis.sock?db=2&password=hunter2", "unix:///run/redis.sock?db=2"),
        ("unix:///tmp/with%20blank.sock", "unix:///tmp/with%20blank.sock"),
        ("redis://db?max_connections=3&timeout=2&retry_on_timeout=yes", "redis://db:6379/0"),
    ],
)
def test_the_address_is_the_url_without_its_secrets(url: str, shown: str) -> None:
    store = RedisPriceStore(url, instance="one")
    assert store.address == shown
    assert "hunter2" not in repr(vars(store))


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@db",
        "redis://me:hunter2@db:notaport",
        "redis://me:hunter2@db?db=first",
        "redis://me:hunter2@db?colour=red",
        "rediss://me:hunter2@db?ssl_cert_reqs=sometimes",
        "rediss://me:hunter2@db?ssl_validate_ocsp=true",
        "redis://me:hunter2@db?socket_keepalive_options=1",
        "redis://me:hunter2@db?connection_class=Connection",
    ],
)
def test_a_bad_url_is_a_configuration_error_that_does_not_quote_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisAddress(url, timeout_s=1.0)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "advice"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "raise the server's maxmemory"),
        ("READONLY You can't write against a read only replica.", "primary"),
        ("NOPERM User default has no permissions to run the 'set' command", "allow this user"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "redis+cluster://"),
        ("NOAUTH Authentication required.", "MDSERVICE_REDIS_URL"),
    ],
)
def test_a_refusal_names_server_reason_and_remedy(reply: str, advice: str) -> None:
    text = describe_refusal("redis://db:6379/0", reply)
    assert "redis://db:6379/0" in text
    assert reply.rstrip(".") in text
    assert advice in text


def test_a_refusal_has_the_code_of_its_reason() -> None:
    aborted = "EXECABORT Transaction discarded because of: OOM command not allowed"
    assert refusal("redis://db", aborted).code == "OOM"


def test_an_unknown_refusal_is_quoted_as_it_is() -> None:
    assert describe_refusal("redis://db", "ERR odd.") == "Redis at redis://db refused: ERR odd"


@pytest.mark.parametrize("reply", [b"%1\r\n*0\r\n:1\r\n", b"(x\r\n", b"what\r\n", b":x\r\n"])
@pytest.mark.parametrize("listens", [True, False])
async def test_a_reply_that_cannot_be_read_is_a_lost_connection(
    reply: bytes, listens: bool
) -> None:
    server = RedisAddress("redis://db", timeout_s=60.0)
    ours, theirs = socket.socketpair()
    with theirs, closing(RedisConnection(ours, server)) as connection:
        theirs.sendall(b"+OK\r\n" + reply)
        with pytest.raises(StoreUnavailable):
            if listens:
                await connection.receive(60.0)
                await connection.receive(60.0)
            else:
                await connection.exchange(b"", 2)
