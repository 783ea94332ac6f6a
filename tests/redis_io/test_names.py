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


IN_PARTS = {"client", "cluster", "xinfo"}
"""The commands that have parts, some of which are not sent."""
PLAIN, CLUSTER = RedisNames(), RedisNames("desk1:", clustered=True)
SHARDED = RedisNames(clustered=True, sharded=True)


def sent_commands() -> set[str]:
    """Each command that the code sends, as a rule names it."""
    package = Path(mdservice.__file__).parent
    # One tries each right.
    files = {*package.rglob("*.py")} - {package / "redis_io/rights.py"}
    source = "".join(path.read_text() for path in files)
    # A list of all commands without a key.
    source, lists = re.subn(r"^_KEYLESS\b.*?^\)", "", source, flags=re.DOTALL | re.MULTILINE)
    assert lists == 1
    pairs = re.findall(r'\(b"([A-Z]+)"(?:, b"([A-Z]+)")?', source)
    names = [(name.lower(), part.lower()) for name, part in pairs]
    return {f"{name}|{part}" if name in IN_PARTS else name for name, part in names}


@pytest.mark.parametrize(
    "line",
    [
        PLAIN.rights(),
        PLAIN.rights("log", group=True),
        PLAIN.rights("log", reader=True),
        CLUSTER.rights("log"),
        CLUSTER.rights(reader=True),
        SHARDED.rights(),
        SHARDED.rights(reader=True),
    ],
)
def test_every_granted_command_is_one_that_some_part_sends(line: str) -> None:
    granted = [rule[1:] for rule in line.split() if rule.startswith("+")]
    assert len(set(granted)) == len(granted)
    assert set(granted) - sent_commands() == set()


def test_every_part_of_a_command_that_is_sent_is_granted() -> None:
    rules = {rule[1:] for rule in CLUSTER.rights().split() if rule.startswith("+")}
    parts = {name for name in sent_commands() if name.partition("|")[0] in IN_PARTS}
    assert {name for name in rules if "|" in name} == parts


def test_a_reader_may_not_write() -> None:
    rules = set(SHARDED.rights(reader=True).split())
    forbidden = {"+set", "+del", "+publish", "+spublish", "+xadd", "+client|kill", "+eval"}
    assert not rules & forbidden
    assert rules < set(SHARDED.rights().split()) | {"~mdservice:instance"}
