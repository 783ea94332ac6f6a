"""The names in Redis, with and without a prefix."""

from __future__ import annotations

import pytest

from mdservice.redis_io.names import RedisNames


@pytest.mark.parametrize("prefix", ["", "desk1:", "a.b-c_", "%d"])
def test_every_name_begins_with_the_prefix(prefix: str) -> None:
    names = RedisNames(prefix)
    plain = RedisNames()
    front = prefix.encode()
    assert names.price_key("AAPL") == front + b"price:AAPL"
    assert names.price_keys == front + b"price:*"
    assert names.writer_key("i") == front + plain.writer_key("i")
    assert names.channel("price.updated") == front + b"price.updated"
    assert names.event_log("log") == front + b"log"
