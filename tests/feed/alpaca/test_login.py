"""Greeting, credentials, answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from mdservice.errors import FeedRefused, FeedUnavailable
from mdservice.feed.alpaca.codec import Frame
from mdservice.feed.alpaca.login import (
    Credentials,
    check_success,
    encoding_of,
    failed_login,
)

CONNECTED = {"T": "success", "msg": "connected"}
AUTHENTICATED = {"T": "success", "msg": "authenticated"}
KEY, SECRET = "PKTESTKEY0123", "a-secret-of-the-account"


@pytest.fixture(params=["json", "msgpack"])
def encode(request: pytest.FixtureRequest) -> Any:
    return json.dumps if request.param == "json" else msgspec.msgpack.encode


def test_the_greeting_shows_the_encoding() -> None:
    assert encoding_of(json.dumps([CONNECTED])) == "json"
    assert encoding_of(msgspec.msgpack.encode([CONNECTED])) == "msgpack"


@pytest.mark.parametrize("message", [CONNECTED, AUTHENTICATED])
def test_the_expected_success_passes(message: dict[str, Any], encode: Any) -> None:
    check_success(encode([message]), message["msg"])


@pytest.mark.parametrize("code", [402, 404, 406, 409])
def test_an_error_in_its_place_is_a_refusal_with_its_code(code: int, encode: Any) -> None:
    with pytest.raises(FeedRefused) as caught:
        check_success(encode([{"T": "error", "code": code, "msg": "no"}]), "authenticated")
    assert (caught.value.code, caught.value.http) == (code, False)


@pytest.mark.parametrize(
    "messages",
    [[CONNECTED], [], {}, "hello", [{"T": "subscription", "quotes": []}], [{"T": "q"}]],
)
def test_anything_else_is_not_alpacas_protocol(messages: Any, encode: Any) -> None:
    with pytest.raises(FeedUnavailable, match=r"expected 'authenticated'.*check .* URL"):
        check_success(encode(messages), "authenticated")


@pytest.mark.parametrize("frame", ["<html>", b"\xff\x00", "", b""])
def test_a_strange_greeting_is_shown(frame: Frame) -> None:
    with pytest.raises(FeedUnavailable) as caught:
        check_success(frame, "connected")
    assert repr(frame) in str(caught.value)


def test_a_long_greeting_is_shown_cut_short() -> None:
    with pytest.raises(FeedUnavailable) as caught:
        check_success("x" * 1_000_000, "connected")
    assert len(str(caught.value)) < 400


def test_a_server_that_echoes_the_credentials_does_not_get_them_into_an_error(
    encode: Any,
) -> None:
    with pytest.raises(FeedUnavailable) as caught:
        check_success(encode(Credentials(KEY, SECRET).as_message()), "authenticated")
    assert KEY not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_credentials_are_sent_and_never_shown() -> None:
    credentials = Credentials(KEY, SECRET)
    assert credentials.as_message() == {"action": "auth", "key": KEY, "secret": SECRET}
    for shown in (repr(credentials), str(credentials)):
        assert KEY not in shown
        assert SECRET not in shown


def test_a_library_that_hides_the_code_is_seen_through(encode: Any) -> None:
    last_frame = encode([{"T": "error", "code": 406, "msg": "connection limit exceeded"}])
    error = failed_login(last_frame, ValueError("failed to authenticate"))
    assert isinstance(error, FeedRefused)
    assert error.code == 406


@pytest.mark.parametrize("last_frame", [None, b"", "[]", json.dumps([CONNECTED])])
def test_a_failed_login_without_a_code_may_be_tried_again(last_frame: Frame | None) -> None:
    error = failed_login(last_frame, ValueError("connected message not received"))
    assert isinstance(error, FeedUnavailable)
    assert "connected message not received" in str(error)
