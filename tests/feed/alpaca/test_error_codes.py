"""Alpaca's error codes and what each asks for."""

from __future__ import annotations

import pytest

from mdservice.feed.alpaca.error_codes import (
    Reaction,
    http_refusal,
    reaction_to_code,
    reaction_to_http,
    refusal,
)


@pytest.mark.parametrize(
    ("code", "reaction"),
    [
        pytest.param(400, Reaction.REFUSE_REQUEST, id="400 invalid syntax"),
        pytest.param(401, Reaction.RECONNECT, id="401 not authenticated: log in again"),
        pytest.param(402, Reaction.FATAL, id="402 auth failed"),
        pytest.param(403, Reaction.IGNORE, id="403 already authenticated"),
        pytest.param(404, Reaction.RECONNECT, id="404 auth timeout"),
        pytest.param(405, Reaction.REFUSE_REQUEST, id="405 symbol limit exceeded"),
        pytest.param(406, Reaction.WAIT_FOR_SLOT, id="406 connection limit exceeded"),
        pytest.param(407, Reaction.RECONNECT, id="407 slow client"),
        pytest.param(408, Reaction.FATAL, id="408 v2 not enabled"),
        pytest.param(409, Reaction.FATAL, id="409 insufficient subscription"),
        pytest.param(410, Reaction.REFUSE_REQUEST, id="410 the answer to a first subscription"),
        pytest.param(411, Reaction.FATAL, id="411 insufficient scope"),
        pytest.param(412, Reaction.FATAL, id="412 option rules"),
        pytest.param(413, Reaction.FATAL, id="413 option rules"),
        pytest.param(500, Reaction.RECONNECT, id="500 internal error"),
        pytest.param(499, Reaction.REFUSE_REQUEST, id="a code not known here"),
    ],
)
def test_reaction_to_each_code(code: int, reaction: Reaction) -> None:
    assert reaction_to_code(code) is reaction


@pytest.mark.parametrize(
    ("status", "reaction"),
    [
        (401, Reaction.FATAL),
        (403, Reaction.FATAL),
        (404, Reaction.RECONNECT),
        (429, Reaction.RECONNECT),
        (500, Reaction.RECONNECT),
        (503, Reaction.RECONNECT),
    ],
)
def test_reaction_to_a_refused_upgrade(status: int, reaction: Reaction) -> None:
    assert reaction_to_http(status) is reaction


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (402, "check ALPACA_API_KEY and ALPACA_SECRET_KEY"),
        (405, "symbol limit"),
        (406, "90 s"),
        (409, "MDSERVICE_FEED"),
        (411, "scope"),
    ],
)
def test_a_refusal_says_what_happened_and_what_to_do(code: int, advice: str) -> None:
    error = refusal(code, "the server's words")
    assert (error.code, error.http) == (code, False)
    assert f"{code}: the server's words" in str(error)
    assert advice in str(error)


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
