"""Alpaca's error codes and what each asks for."""

from __future__ import annotations

from typing import Any

import pytest

from mdservice.errors import FeedRefused, FeedUnavailable
from mdservice.feed.alpaca.error_codes import error_in_stream, http_refusal, refusal
from mdservice.feed.driver import RequestRefused
from mdservice.model.feeds import FEEDS, NEWS_FEED, STOCKS, Feed


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (402, "fix"),
        (406, "wait_for_slot"),
        (409, "fix"),
        (410, "fix"),
        (411, "fix"),
        (404, "retry"),
        (407, "retry"),
        (500, "retry"),
        (499, "retry"),
    ],
)
def test_what_helps_after_a_refused_login(code: int, remedy: str) -> None:
    assert refusal(code, "").remedy == remedy


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "fix"),
        (403, "fix"),
        (404, "check_url"),
        (429, "retry"),
        (500, "retry"),
        (503, "retry"),
    ],
)
def test_what_helps_after_a_refused_upgrade(status: int, remedy: str) -> None:
    assert http_refusal(status).remedy == remedy


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        pytest.param(400, "bad_symbol", id="400 invalid syntax"),
        pytest.param(405, "symbol_limit", id="405 symbol limit exceeded"),
        pytest.param(410, "not_offered", id="410 invalid subscribe action for this feed"),
        pytest.param(413, "bad_symbol", id="413 star subscription for option quotes"),
        pytest.param(499, "other", id="a code not known here"),
    ],
)
def test_a_request_is_refused_and_the_connection_goes_on(code: int, cause: str) -> None:
    refused = error_in_stream(code, "its words")
    assert isinstance(refused, RequestRefused)
    assert (refused.cause, refused.code, refused.words) == (cause, code, "its words")
    assert refused.reason == str(refusal(code, "its words"))


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("not_offered", "fix"),
        ("symbol_limit", "retry"),
        ("bad_symbol", "retry"),
        ("other", "retry"),
    ],
)
def test_what_helps_after_a_request_that_the_service_needs(cause: Any, remedy: str) -> None:
    error = RequestRefused("no", cause=cause, code=400).as_error()
    assert (str(error), error.code, error.remedy) == ("no", 400, remedy)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(401, id="401 not authenticated: log in again"),
        pytest.param(404, id="404 auth timeout"),
        pytest.param(407, id="407 slow client"),
        pytest.param(500, id="500 internal error"),
    ],
)
def test_the_connection_ends_and_another_may_work(code: int) -> None:
    assert isinstance(error_in_stream(code, ""), FeedUnavailable)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        pytest.param(402, "fix", id="402 auth failed"),
        pytest.param(406, "wait_for_slot", id="406 connection limit exceeded"),
        pytest.param(408, "fix", id="408 v2 not enabled"),
        pytest.param(409, "fix", id="409 insufficient subscription"),
        pytest.param(411, "fix", id="411 insufficient scope"),
        pytest.param(412, "fix", id="412 options in JSON"),
    ],
)
def test_the_connection_ends_with_a_refusal(code: int, remedy: str) -> None:
    refused = error_in_stream(code, "")
    assert isinstance(refused, FeedRefused)
    assert (refused.code, refused.http, refused.remedy) == (code, False, remedy)


def test_403_already_authenticated_is_harmless() -> None:
    assert error_in_stream(403, "already authenticated") is None


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (402, "check ALPACA_API_KEY and ALPACA_SECRET_KEY"),
        (405, "symbol limit"),
        (406, "90 s"),
        (409, "MDSERVICE_FEED"),
        (410, "leave it out"),
        (411, "scope"),
        (412, "msgpack"),
        (413, "name the contracts"),
    ],
)
def test_a_refusal_says_what_happened_and_what_to_do(code: int, advice: str) -> None:
    error = refusal(code, "the server's words")
    assert (error.code, error.http) == (code, False)
    assert f"{code}: the server's words" in str(error)
    assert advice in str(error)


@pytest.mark.parametrize("feed", FEEDS)
def test_advice_names_the_settings_of_the_feed(feed: Feed) -> None:
    prefix = "MDSERVICE_" if feed is STOCKS else f"MDSERVICE_{feed.name.upper()}_"
    in_plan, no_stream = str(refusal(409, "", feed)), str(http_refusal(404, feed=feed))
    for text in (in_plan, no_stream):
        assert (f"{prefix}FEED" in text.replace("FEED_URL", "")) is (feed is not NEWS_FEED)
    assert (f"{prefix}FEED_URL" if feed is STOCKS else f"{prefix}URL") in no_stream


def test_a_refusal_without_words_still_reads_well() -> None:
    assert str(refusal(499, "")) == "the feed refused with 499: no reason given"


@pytest.mark.parametrize(("status", "about_keys"), [(401, True), (403, True), (429, False)])
def test_a_refused_upgrade_names_the_keys_where_they_are_the_cause(
    status: int, about_keys: bool
) -> None:
    error = http_refusal(status)
    assert (error.code, error.http) == (status, True)
    assert str(status) in str(error)
    assert ("ALPACA_SECRET_KEY" in str(error)) == about_keys
