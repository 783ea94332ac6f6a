"""What is kept out of logs and messages: secrets, and logins in URLs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.observability.masking import Masker, mask_url, quoted, secrets_in_url


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


@pytest.mark.parametrize("value", ["me:pw@host", "redis://pw", "https://x?pw"])
def test_a_value_that_may_hold_a_login_is_not_quoted(value: str) -> None:
    assert "pw" not in quoted(value)


def test_other_values_are_quoted_and_cut_short() -> None:
    assert quoted("iexx") == "'iexx'"
    assert quoted("x" * 10_000).startswith("'xxx")
    assert len(quoted("x" * 10_000)) < 200


SECRETS = ("hid/den+secret==", 'quo"ted\\secret')


def test_a_secret_is_masked_as_urls_and_json_write_it() -> None:
    masker = Masker(SECRETS)
    assert masker.mask_text("?s=hid%2Fden%2Bsecret%3D%3D&x=1") == "?s=***&x=1"
    assert masker.mask_text(json.dumps({"k": SECRETS[1]})) == '{"k": "***"}'


def test_a_short_secret_is_masked_only_where_it_stands_alone() -> None:
    masker = Masker(["pw1"])
    assert masker.mask_text("redis://:pw1@db pw1 pw12 xpw1") == "redis://:***@db *** pw12 xpw1"


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("s", "Alpaca's feed"),
        ("s", "Alpaca\u2019s feed"),
        ("1", "us-1"),
        ("us", "us-1"),
        ("1", "127.0.0.1:80 in 0.1 s"),
        ("a", "an x_a, and caf\u00e9a"),
        ("v2", "/v2.1"),
    ],
)
def test_a_secret_of_few_letters_is_not_masked_within_a_word(secret: str, text: str) -> None:
    assert Masker([secret]).mask_text(text) == text


@pytest.mark.parametrize("secret", ["s", "1", "us", "é"])
@pytest.mark.parametrize(
    "text",
    ["{}", "'{}'", '"{}"', "key={}", "redis://:{}@host", "a:{},b", "it is {}.", "({})", "[{}]"],
)
def test_a_secret_of_few_letters_is_masked_where_it_stands_alone(secret: str, text: str) -> None:
    assert Masker([secret]).mask_text(text.format(secret)) == text.format("***")


def test_a_secret_inside_another_leaves_nothing_behind() -> None:
    masker = Masker(["secretsecret", "secretsecret-and-more"])
    assert masker.mask_text("is secretsecret-and-more") == "is ***"


def test_an_object_that_cannot_be_shown_does_not_stop_the_line() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "Broken" in Masker().mask(Broken())
    assert Masker().mask({"a": None, "b": 1.5, "c": True}) == {"a": None, "b": 1.5, "c": True}


def test_nesting_without_end_is_cut() -> None:
    endless: list[Any] = []
    endless.append(endless)
    masked = Masker(["hidden-secret"]).mask(endless)
    assert isinstance(masked, list)
