"""The protocol's state machine, without any connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.simulator.feeds import (
    CRYPTO,
    FEEDS,
    NEWS,
    OPTIONS,
    STOCKS,
    TRADING,
    SimFeed,
    feed_at,
)
from mdservice.simulator.session import (
    NOTHING,
    SILENCE,
    Account,
    Refusals,
    Reply,
    Session,
    SessionRules,
)
from mdservice.simulator.wire import ERROR_TEXTS, Encoding

AUTH = {"action": "auth", "key": "key", "secret": "secret"}


def make(
    *,
    account: Account | None = None,
    refusals: Refusals | None = None,
    number: int = 1,
    endpoint: str = "/v2/iex",
    rules: SessionRules | None = None,
    encoding: Encoding = "msgpack",
) -> Session:
    return Session(
        number,
        endpoint,
        account=account or Account(),
        refusals=refusals or Refusals(),
        rules=rules or SessionRules(),
        encoding=encoding,
    )


def logged_in(
    rules: SessionRules | None = None,
    refusals: Refusals | None = None,
    feed: SimFeed = STOCKS,
    encoding: Encoding = "msgpack",
) -> Session:
    session = make(rules=rules, refusals=refusals, endpoint=feed.paths[0], encoding=encoding)
    session.open(0)
    session.receive(AUTH, 0)
    return session


def code(reply: Reply) -> int:
    (message,) = reply.messages
    assert message["T"] == "error"
    assert message["msg"] == ERROR_TEXTS[message["code"]]
    return int(message["code"])


def refused(reply: Reply) -> bool:
    return any(message["T"] == "error" for message in reply.messages)


def test_greets_then_accepts_the_login() -> None:
    session = make()
    assert session.open(0) == Reply(({"T": "success", "msg": "connected"},))
    assert session.receive(AUTH, 0) == Reply(({"T": "success", "msg": "authenticated"},))
    assert session.authenticated


def test_headers_log_in_without_a_message() -> None:
    session = make(account=Account("key", "secret"))
    reply = session.open(0, ("key", "secret"))
    assert [message["msg"] for message in reply.messages] == ["connected", "authenticated"]
    assert code(session.receive(AUTH, 0)) == 403


@pytest.mark.parametrize(
    "login",
    [
        {"action": "auth", "key": "other", "secret": "secret"},
        {"action": "auth", "key": "key", "secret": "other"},
        {"action": "auth", "key": "key"},
        {"action": "auth", "key": ["key"], "secret": "secret"},
    ],
)
def test_a_wrong_login_is_402_and_the_end(login: dict[str, object]) -> None:
    session = make(account=Account("key", "secret"))
    session.open(0)
    reply = session.receive(login, 0)
    assert (code(reply), reply.close_code) == (402, 1000)
    assert not session.authenticated


def test_any_login_that_is_not_empty_passes_by_default() -> None:
    assert code(make().receive({"action": "auth", "key": "", "secret": "x"}, 0)) == 402
    assert not refused(make().receive({"action": "auth", "key": "a", "secret": "b"}, 0))


def test_secrets_are_not_in_the_account_s_repr() -> None:
    assert "hush" not in repr(Account("key", "hush"))


def test_subscribing_before_the_login_is_401() -> None:
    session = make()
    session.open(0)
    assert code(session.receive({"action": "subscribe", "quotes": ["AAPL"]}, 0)) == 401


def test_the_time_for_the_login_ends_with_404() -> None:
    session = make()
    session.open(0)
    reply = session.time_out()
    assert (code(reply), reply.close_code) == (404, 1000)
    assert logged_in().time_out() == NOTHING


def test_every_change_is_answered_with_the_whole_state() -> None:
    session = logged_in()
    session.receive({"action": "subscribe", "quotes": ["AAPL", "MSFT"], "bars": ["*"]}, 0)
    reply = session.receive({"action": "subscribe", "trades": ["AMD"]}, 0)
    assert reply.messages == (
        {
            "T": "subscription",
            "trades": ["AMD"],
            "quotes": ["AAPL", "MSFT"],
            "bars": ["*"],
            "updatedBars": [],
            "dailyBars": [],
            "statuses": [],
            "lulds": [],
            "corrections": ["AMD"],
            "cancelErrors": ["AMD"],
            "imbalances": [],
        },
    )
    reply = session.receive({"action": "unsubscribe", "quotes": ["AAPL", "NVDA"]}, 0)
    assert reply.messages[0]["quotes"] == ["MSFT"]
    assert reply.messages[0]["trades"] == ["AMD"]


def test_the_wildcard_wants_every_symbol() -> None:
    session = logged_in()
    session.receive({"action": "subscribe", "quotes": ["AAPL"]}, 0)
    assert session.wants("AAPL")
    assert not session.wants("MSFT")
    session.receive({"action": "subscribe", "quotes": ["*"]}, 0)
    assert session.wants("MSFT")
    assert not session.wants("MSFT", "trades")


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        {"action": "dance"},
        {"action": ["subscribe"]},
        {"action": "subscribe"},
        {"action": "subscribe", "quotes": "AAPL"},
        {"action": "subscribe", "quotes": [7]},
        {"action": "subscribe", "quotes": ["AAPL", "aapl"]},
        {"action": "subscribe", "quotes": ["NOT A SYMBOL"]},
        {"action": "subscribe", "quotes": ["BAD"]},
        {"action": "subscribe", "pigeons": ["AAPL"]},
    ],
)
def test_what_cannot_be_understood_is_400_and_changes_nothing(
    message: dict[str, object] | None,
) -> None:
    session = logged_in(SessionRules(invalid_symbols={"BAD"}))
    session.receive({"action": "subscribe", "quotes": ["AAPL"]}, 0)
    reply = session.receive(message, 0)
    assert (code(reply), reply.close_code) == (400, None)
    assert session.subscriptions["quotes"] == ("AAPL",)


SYMBOL_OF = {
    STOCKS: "BRK.B",
    CRYPTO: "BTC/USD",
    OPTIONS: "AAPL261218C00200000",
    NEWS: "AAPL",
}


@pytest.mark.parametrize("feed", FEEDS)
def test_each_stream_has_its_paths_channels_and_symbols(feed: SimFeed) -> None:
    symbol = SYMBOL_OF[feed]
    for path in feed.paths:
        assert make(endpoint=path).feed is feed
    for channel in feed.asked_for:
        session = logged_in(feed=feed)
        (answer,) = session.receive({"action": "subscribe", channel: [symbol]}, 0).messages
        subscribed = {channel, *(feed.with_trades if channel == "trades" else ())}
        assert answer == {
            "T": "subscription",
            **{each: [symbol] if each in subscribed else [] for each in feed.channels},
        }
    others = {channel for each in FEEDS for channel in each.channels} - {*feed.channels}
    for channel in others:
        assert code(logged_in(feed=feed).receive({"action": "subscribe", channel: ["*"]}, 0)) == 410
    if feed is not NEWS:
        for other in {*SYMBOL_OF.values()} - {symbol, *(("AAPL",) if feed is STOCKS else ())}:
            asked = {"action": "subscribe", "quotes": [other]}
            assert code(logged_in(feed=feed).receive(asked, 0)) == 400


def test_any_other_path_is_one_for_stocks() -> None:
    assert feed_at("/v9/any") is STOCKS
    assert feed_at("/stream") is TRADING


def test_options_are_msgpack_only_without_wildcard_and_limited() -> None:
    asked = {"action": "subscribe", "trades": ["*"]}
    assert code(logged_in(feed=OPTIONS, encoding="json").receive(asked, 0)) == 412
    session = logged_in(SessionRules(option_quotes_limit=2), feed=OPTIONS)
    assert not refused(session.receive(asked, 0)), "a wildcard is refused for quotes alone"
    assert code(session.receive({"action": "subscribe", "quotes": ["*"]}, 0)) == 413
    options = [f"AAPL261218C0020{number}000" for number in range(3)]
    assert code(session.receive({"action": "subscribe", "quotes": options}, 0)) == 405
    assert not refused(session.receive({"action": "subscribe", "quotes": options[:2]}, 0))


def test_a_refusal_may_be_planned_for_one_stream() -> None:
    refusals = Refusals()
    refusals.plan("auth", 406, feed="crypto")
    refusals.plan("auth", 500)
    assert code(make(refusals=refusals).receive(AUTH, 0)) == 500
    crypto = make(refusals=refusals, endpoint=CRYPTO.paths[0])
    assert code(crypto.receive(AUTH, 0)) == 406
    assert not refused(crypto.receive(AUTH, 0))


def test_the_symbol_limit_refuses_the_whole_message() -> None:
    session = logged_in(SessionRules(symbol_limit=3))
    session.receive({"action": "subscribe", "quotes": ["A", "B"]}, 0)
    assert code(session.receive({"action": "subscribe", "quotes": ["C"], "bars": ["C"]}, 0)) == 405
    assert session.subscriptions["quotes"] == ("A", "B")
    assert session.subscriptions["bars"] == ()
    reply = session.receive({"action": "subscribe", "trades": ["C"]}, 0)
    assert reply.messages[0]["cancelErrors"] == ["C"], "the trades' companions do not count"


def test_ignored_symbols_are_left_out_without_a_word() -> None:
    session = logged_in(SessionRules(ignored_symbols={"LOST"}))
    reply = session.receive({"action": "subscribe", "quotes": ["AAPL", "LOST"]}, 0)
    assert reply.messages[0]["quotes"] == ["AAPL"]


def test_a_second_session_is_406_until_the_first_has_closed() -> None:
    account = Account()
    first, second = make(account=account), make(account=account, number=2)
    first.receive(AUTH, 0)
    reply = second.receive(AUTH, 0)
    assert (code(reply), reply.close_code) == (406, 1000)
    first.end(1, clean=False)
    assert not refused(make(account=account, number=3).receive(AUTH, 1))


def test_each_endpoint_and_each_key_has_its_own_slot() -> None:
    account = Account()
    make(account=account).receive(AUTH, 0)
    other_feed = make(account=account, number=2, endpoint="/v2/test")
    other_key = make(account=account, number=3)
    assert not refused(other_feed.receive(AUTH, 0))
    assert not refused(other_key.receive({**AUTH, "key": "another"}, 0))


def test_a_lost_session_holds_its_slot_for_a_while() -> None:
    account = Account(slot_hold_s=90)
    first = make(account=account)
    first.receive(AUTH, 0)
    first.end(100, clean=False)
    assert code(make(account=account, number=2).receive(AUTH, 189.9)) == 406
    third = make(account=account, number=3)
    assert not refused(third.receive(AUTH, 190))
    third.end(200, clean=True)
    assert not refused(make(account=account, number=4).receive(AUTH, 200))


def test_a_session_that_never_logged_in_frees_no_slot_of_another() -> None:
    account = Account()
    make(account=account).receive(AUTH, 0)
    second = make(account=account, number=2)
    second.receive(AUTH, 0)
    second.end(1, clean=True)
    assert code(make(account=account, number=3).receive(AUTH, 2)) == 406


@pytest.mark.parametrize("planned", sorted(ERROR_TEXTS))
def test_every_code_can_be_asked_for_at_every_moment(planned: int) -> None:
    refusals = Refusals()
    refusals.plan("connect", planned)
    assert code(make(refusals=refusals).open(0)) == planned
    refusals.plan("auth", planned)
    session = make(refusals=refusals)
    assert code(session.receive(AUTH, 0)) == planned
    session = logged_in(refusals=refusals)
    refusals.plan("subscribe", planned)
    refusals.plan("unsubscribe", planned)
    assert code(session.receive({"action": "subscribe", "quotes": ["A"]}, 0)) == planned
    assert code(session.receive({"action": "unsubscribe", "quotes": ["A"]}, 0)) == planned
    assert session.subscriptions["quotes"] == ()


def test_planned_refusals_are_used_up_in_order() -> None:
    refusals = Refusals()
    refusals.plan("auth", 500, times=2)
    refusals.plan("auth", 402)
    assert [refusals.take("auth") for _ in range(4)] == [500, 500, 402, None]
    refusals.plan("auth", 500)
    refusals.clear()
    assert refusals.take("auth") is None


def test_a_stalled_session_never_answers_again() -> None:
    refusals = Refusals()
    refusals.plan("auth", SILENCE)
    session = make(refusals=refusals)
    session.open(0)
    assert session.receive(AUTH, 0) == NOTHING
    assert session.receive(AUTH, 1) == NOTHING
    assert session.time_out() == NOTHING


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
SYMBOLS = st.lists(st.sampled_from(["A", "B", "C", "*"]) | JUNK, max_size=4)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"action": st.sampled_from(["subscribe", "unsubscribe"]) | JUNK},
            optional=dict.fromkeys(STOCKS.channels, SYMBOLS),
        )
        | st.dictionaries(st.text(max_size=5), JUNK),
        max_size=8,
    )
)
def test_any_messages_keep_the_state_within_the_limit(messages: list[dict[str, object]]) -> None:
    session = logged_in(SessionRules(symbol_limit=4))
    for message in messages:
        reply = session.receive(message, 0)
        assert len(reply.messages) == 1
        state = session.subscriptions
        assert state["corrections"] == state["cancelErrors"] == state["trades"]
        assert sum(map(len, state.values())) - 2 * len(state["trades"]) <= 4
        if reply.messages[0]["T"] == "subscription":
            assert {c: tuple(reply.messages[0][c]) for c in STOCKS.channels} == state
