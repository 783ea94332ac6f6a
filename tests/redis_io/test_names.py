"""The names in Redis, with and without a prefix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mdservice
from mdservice.model.kinds import KINDS, QUOTES
from mdservice.redis_io.names import RedisNames


@pytest.mark.parametrize("prefix", ["", "desk1:", "a.b-c_", "%d"])
def test_every_name_begins_with_the_prefix(prefix: str) -> None:
    names = RedisNames(prefix)
    plain = RedisNames()
    front = prefix.encode()
    assert names.price_key("AAPL") == front + b"price:AAPL"
    assert names.keys(QUOTES) == front + b"price:*"
    assert names.writer_key("i") == front + plain.writer_key("i")
    assert names.channel("price.updated") == front + b"price.updated"
    assert names.event_log("log") == front + b"log"


def test_the_rights_take_all_other_channels_away_first() -> None:
    rules = RedisNames("desk1:").rights("log").split()
    first = next(n for n, rule in enumerate(rules) if rule.startswith("&"))
    assert rules.index("resetchannels") < first
    assert {"~desk1:log", "~desk1:price:*", "&desk1:price.updated"} <= set(rules)
    assert not any(rule.startswith(("~", "&")) and "desk1:" not in rule for rule in rules)
    assert "~log" not in " ".join(RedisNames().rights().split())


def test_the_rights_have_the_names_of_every_kind() -> None:
    rules = set(RedisNames("desk1:").rights().split())
    for kind in KINDS:
        assert {f"&desk1:{kind.event}", f"&desk1:{kind.marker}"} <= rules
        assert (f"~desk1:{kind.key_prefix}*" in rules) == kind.has_key
    assert {"~desk1:news", "+xadd", "+del"} <= rules


def test_every_granted_command_is_one_that_some_part_sends() -> None:
    package = Path(mdservice.__file__).parent
    # One lists all commands without a key, and one tries each right.
    others = {package / "redis_io/cluster.py", package / "redis_io/rights.py"}
    source = "".join(path.read_text() for path in {*package.rglob("*.py")} - others)
    sent = {name.lower() for name in re.findall(r'\(b"([A-Z]+)"', source)}
    rules = RedisNames().rights("log", group=True).split()
    assert {rule[1:] for rule in rules if rule.startswith("+")} - sent == set()
