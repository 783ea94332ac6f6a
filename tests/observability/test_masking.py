"""URLs with a login, and how they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.observability.masking import mask_url, secrets_in_url


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://db:6379/1", "redis://db:6379/1"),
        ("redis://:pw@db:6379/1", "redis://***@db:6379/1"),
        ("redis://me:p@ss/word@db", "redis://***@db"),
        ("unix://me:pw@/run/redis.sock?db=2", "unix://***@/run/redis.sock?db=2"),
        ("rediss://db?password=pw&db=1", "rediss://db?password=***&db=1"),
        ("https://x/positions?pw", "https://x/positions?***"),
        ("https://x/#pw", "https://x/#***"),
        ("none", "none"),
        ("file:me@here.json", "file:me@here.json"),
    ],
)
def test_a_login_and_a_query_are_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked


_PASSWORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=30)


@given(_PASSWORDS)
def test_no_password_survives_masking(password: str) -> None:
    hidden = "Zq9" + password.replace("?", "").replace("#", "") + "9qZ"
    assert hidden not in mask_url(f"redis://user:{hidden}@host:6379/0")


def test_the_secrets_of_a_url_are_its_password_and_its_query() -> None:
    url = "https://me:p%40ss@x/y?token=t1&symbols=AAPL&feed=iex"
    assert secrets_in_url(url) == ("p%40ss", "p@ss", "t1")
    assert secrets_in_url("redis://token@db") == ("token",)
    assert secrets_in_url("redis://db:6379") == ()
    assert secrets_in_url("none") == ()


def test_a_url_that_cannot_be_read_is_secret_as_a_whole() -> None:
    assert secrets_in_url("redis://[x:pw@db") == ("redis://[x:pw@db",)
