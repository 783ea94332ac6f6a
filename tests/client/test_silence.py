"""A server that says nothing is asked, and given up when it does not answer."""

from __future__ import annotations

from mdservice.client.pubsub import ANSWER_LIMIT_S, PING_AFTER_S, Silence


def test_asks_once_after_a_while() -> None:
    silence = Silence(0.0)
    assert not silence.ask(PING_AFTER_S - 0.1)
    assert silence.ask(PING_AFTER_S)
    assert not silence.ask(PING_AFTER_S + 1)


def test_gives_up_only_what_was_asked_and_did_not_answer() -> None:
    silence = Silence(0.0)
    assert not silence.too_long(1_000.0, anything=False)
    assert silence.ask(1_000.0)
    assert not silence.too_long(1_000.0 + ANSWER_LIMIT_S - 0.1, anything=False)
    assert silence.too_long(1_000.0 + ANSWER_LIMIT_S, anything=False)


def test_whatever_is_heard_counts() -> None:
    silence = Silence(0.0)
    assert silence.ask(10.0)
    assert not silence.too_long(10.0 + 2 * ANSWER_LIMIT_S, anything=True)
    assert not silence.ask(10.0 + 2 * ANSWER_LIMIT_S + PING_AFTER_S - 0.1)
