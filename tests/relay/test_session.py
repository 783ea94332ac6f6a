"""Alpaca's protocol as one client sees it: logins, requests, acknowledgements, refusals."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.feeds import CRYPTO, FEEDS, NEWS_FEED, OPTIONS, STOCKS, Feed, Topic
from mdservice.relay import session as session_module
from mdservice.relay.messages import Encoding
from mdservice.relay.session import (
    ERROR_TEXTS,
    Ack,
    Change,
    Credentials,
    RelayError,
    Session,
    encode_control,
    feed_at,
    read_message,
)

OPTION = "AAPL261218C00200000"
LOGIN = {"action": "auth", "key": "key", "secret": "secret"}


def make_session(
    feed: Feed = STOCKS,
    *,
    served: bool = True,
    encoding: Encoding = "msgpack",
    keys: dict[str, str] | None = None,
    logged_in: bool = True,
) -> Session:
    session = Session(feed, served=served, encoding=encoding, keys=keys or {})
    if logged_in:
        assert session.receive(LOGIN) == Ack()
    return session


def refusal(session: Session, message: Any) -> RelayError:
    """The refusal of a message, which has changed nothing."""
    before = dict(session.subscribed)
    with pytest.raises(RelayError) as caught:
        session.receive(message)
    assert session.subscribed == before
    assert caught.value.message() == {
        "T": "error",
        "code": caught.value.code,
        "msg": ERROR_TEXTS[caught.value.code],
    }
    return caught.value


def change(session: Session, action: str, **channels: Any) -> Change:
    asked = session.receive({"action": action, **channels})
    assert isinstance(asked, Change)
    session.apply(asked)
    return asked


def state(session: Session) -> dict[str, list[str]]:
    """The channels of the acknowledgement that are not empty."""
    message = session.acknowledgement()
    assert next(iter(message)) == "T"
    assert message.pop("T") == "subscription"
    return {channel: symbols for channel, symbols in message.items() if symbols}


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "feed"),
        [
            ("/v2/iex", STOCKS),
            ("/v2/sip", STOCKS),
            ("/v2/delayed_sip", STOCKS),
            ("/v2/test", STOCKS),
            ("/v1beta1/boats", STOCKS),
            ("/v1beta1/overnight", STOCKS),
            ("/v1beta3/crypto/us", CRYPTO),
            ("/v1beta3/crypto/us-1", CRYPTO),
            ("/v1beta3/crypto/eu-1", CRYPTO),
            ("/v1beta2/crypto", CRYPTO),
            ("/v1beta1/indicative", OPTIONS),
            ("/v1beta1/opra", OPTIONS),
            ("/v1beta1/news", NEWS_FEED),
            ("/v1beta1/news/", NEWS_FEED),
        ],
    )
    def test_alpacas_paths_have_feeds(self, path: str, feed: Feed) -> None:
        assert feed_at(path, dict.fromkeys(FEEDS)) == (feed, True)
        assert feed_at(path, {}) == (feed, False)

    @pytest.mark.parametrize("path", ["", "/", "/v2", "/v2/IEX", "/v2/iex/x", "/stream", "v2/iex"])
    def test_other_paths_are_unknown(self, path: str) -> None:
        assert feed_at(path, dict.fromkeys(FEEDS)) is None

    def test_only_the_feed_that_is_set_up_is_served(self) -> None:
        served = {STOCKS: "iex", CRYPTO: "us", NEWS_FEED: ""}
        assert feed_at("/v2/iex", served) == (STOCKS, True)
        assert feed_at("/v2/sip", served) == (STOCKS, False)
        assert feed_at("/v1beta3/crypto/eu-1", served) == (CRYPTO, False)
        assert feed_at("/v1beta2/crypto", served) == (CRYPTO, True)
        assert feed_at("/v1beta1/news", served) == (NEWS_FEED, True)
        assert feed_at("/v1beta1/opra", served) == (OPTIONS, False)


class TestLogin:
    def test_without_keys_any_pair_is_right(self) -> None:
        session = make_session(logged_in=False)
        assert not session.authenticated
        assert session.receive(LOGIN) == Ack()
        assert session.authenticated

    @pytest.mark.parametrize("pair", [("", "secret"), ("key", ""), ("", "")])
    def test_an_empty_key_or_secret_is_none(self, pair: tuple[str, str]) -> None:
        key, secret = pair
        session = make_session(logged_in=False)
        assert refusal(session, {"action": "auth", "key": key, "secret": secret}).code == 402

    @pytest.mark.parametrize(
        ("key", "secret", "fits"),
        [
            ("a", "1", True),
            ("b", "2", True),
            ("a", "2", False),
            ("b", "1", False),
            ("", "", False),
            ("a", "1 ", False),
            ("ä", "\udc80", False),
        ],
    )
    def test_with_keys_only_a_pair_of_them_is_right(
        self, key: str, secret: str, fits: bool
    ) -> None:
        session = make_session(keys={"a": "1", "b": "2"}, logged_in=False)
        login = {"action": "auth", "key": key, "secret": secret}
        if fits:
            assert session.receive(login) == Ack()
        else:
            assert refusal(session, login).code == 402
        assert session.authenticated is fits

    @pytest.mark.parametrize("login", [{}, {"key": 1, "secret": "x"}, {"key": "x", "secret": None}])
    def test_a_login_without_a_pair_fails(self, login: dict[str, Any]) -> None:
        session = make_session(logged_in=False)
        error = refusal(session, {"action": "auth", **login})
        assert (error.code, error.closes) == (402, True)
        session.receive(LOGIN)
        assert refusal(session, {"action": "auth", **login}).code == 403

    def test_a_second_login_changes_nothing(self) -> None:
        session = make_session(keys={"key": "secret"})
        error = refusal(session, LOGIN)
        assert (error.code, error.closes) == (403, False)
        assert refusal(session, {"action": "auth", "key": "x", "secret": "y"}).code == 403
        assert session.authenticated

    def test_a_feed_that_is_not_set_up_is_refused_after_the_login(self) -> None:
        session = make_session(served=False, keys={"key": "secret"}, logged_in=False)
        assert refusal(session, {"action": "auth", "key": "key", "secret": "x"}).code == 402
        error = refusal(session, LOGIN)
        assert (error.code, error.closes) == (409, True)
        assert not session.authenticated

    def test_nothing_is_subscribed_before_the_login(self) -> None:
        session = make_session(logged_in=False)
        error = refusal(session, {"action": "subscribe", "quotes": ["AAPL"]})
        assert (error.code, error.closes) == (401, False)

    def test_no_output_shows_a_secret(self) -> None:
        assert "geheim" not in repr(Credentials("geheim", "geheim"))


class TestRequests:
    def test_requests_add_and_remove_and_the_answer_has_everything(self) -> None:
        session = make_session()
        assert state(session) == {}
        change(session, "subscribe", quotes=["AAPL", "MSFT"], bars=["*"])
        change(session, "subscribe", quotes=["TSLA", "AAPL"])
        assert state(session) == {"quotes": ["AAPL", "MSFT", "TSLA"], "bars": ["*"]}
        change(session, "unsubscribe", quotes=["MSFT", "NVDA"], dailyBars=["AAPL"])
        assert state(session) == {"quotes": ["AAPL", "TSLA"], "bars": ["*"]}
        change(session, "unsubscribe", bars=["*"], quotes=["AAPL", "TSLA"])
        assert state(session) == {}

    def test_a_change_has_only_what_is_new(self) -> None:
        session = make_session()
        first = change(session, "subscribe", quotes=["AAPL", "AAPL"])
        assert first == Change(True, (Topic("quotes", "AAPL"),))
        again = change(session, "subscribe", quotes=["AAPL", "MSFT"])
        assert again == Change(True, (Topic("quotes", "MSFT"),))
        removed = change(session, "unsubscribe", quotes=["TSLA", "MSFT"])
        assert removed == Change(False, (Topic("quotes", "MSFT"),))

    def test_each_topic_has_the_request_that_has_subscribed_it(self) -> None:
        session = make_session()
        first = change(session, "subscribe", quotes=["AAPL"], trades=["AAPL"])
        change(session, "unsubscribe", quotes=["AAPL"])
        second = change(session, "subscribe", quotes=["AAPL"])
        assert session.subscribed[Topic("quotes", "AAPL")] is second
        assert session.subscribed[Topic("trades", "AAPL")] is first

    @pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
    def test_the_acknowledgement_has_every_channel_of_the_feed(self, feed: Feed) -> None:
        expected = {
            "stocks": [
                "T", "quotes", "trades", "bars", "updatedBars", "dailyBars", "statuses", "lulds",
                "imbalances", "corrections", "cancelErrors",
            ],
            "crypto": ["T", "quotes", "trades", "bars", "updatedBars", "dailyBars", "orderbooks"],
            "options": ["T", "quotes", "trades"],
            "news": ["T", "news"],
        }  # fmt: skip
        assert list(make_session(feed).acknowledgement()) == expected[feed.name]

    def test_corrections_and_cancels_come_with_trades(self) -> None:
        session = make_session()
        change(session, "subscribe", trades=["AAPL"], corrections=["MSFT"], cancelErrors=["*"])
        with_trades = ["AAPL"]
        assert state(session) == {
            "trades": with_trades, "corrections": with_trades, "cancelErrors": with_trades
        }  # fmt: skip
        assert change(session, "unsubscribe", corrections=["AAPL"]).topics == ()

    def test_a_channel_may_be_null_or_empty(self) -> None:
        session = make_session()
        change(session, "subscribe", quotes=["AAPL"], trades=None, bars=[])
        assert state(session) == {"quotes": ["AAPL"]}
        assert change(session, "subscribe", trades=None) == Change(True, ())

    @pytest.mark.parametrize(
        ("feed", "symbol"),
        [(STOCKS, "BRK.B"), (CRYPTO, "BTC/USD"), (OPTIONS, OPTION), (CRYPTO, "*"), (STOCKS, "*")],
    )
    def test_a_feed_has_its_own_symbols(self, feed: Feed, symbol: str) -> None:
        assert change(make_session(feed), "subscribe", trades=[symbol]).topics

    def test_news_has_the_symbols_of_every_feed(self) -> None:
        session = make_session(NEWS_FEED)
        change(session, "subscribe", news=["AAPL", "BTC/USD", "*"])
        assert state(session) == {"news": ["AAPL", "BTC/USD", "*"]}

    @pytest.mark.parametrize(
        "request_",
        [
            {"quotes": ["BTC/USD"]},
            {"quotes": [OPTION]},
            {"quotes": ["aapl"]},
            {"quotes": [" AAPL"]},
            {"quotes": [""]},
            {"quotes": ["A" * 33]},
            {"quotes": [7]},
            {"quotes": [None]},
            {"quotes": [["AAPL"]]},
            {"quotes": "AAPL"},
            {"quotes": b"AAPL"},
            {"quotes": {"AAPL": 1}},
            {"quotes": 7},
            {"quotes": ["AAPL", "x y"]},
            {"tickers": ["AAPL"]},
            {},
        ],
    )
    @pytest.mark.parametrize("action", ["subscribe", "unsubscribe"])
    def test_a_request_that_cannot_be_read_is_refused_as_a_whole(
        self, action: str, request_: dict[str, Any]
    ) -> None:
        session = make_session()
        change(session, "subscribe", trades=["AAPL"])
        error = refusal(session, {"action": action, **request_})
        assert (error.code, error.closes) == (400, False)

    @pytest.mark.parametrize(
        "message",
        [None, {}, {"action": "listen"}, {"action": None}, {"action": ["auth"]}, {"action": {}}],
    )
    def test_another_action_is_refused(self, message: Any) -> None:
        assert refusal(make_session(), message).code == 400
        assert refusal(make_session(logged_in=False), message).code == 400

    def test_a_channel_of_another_feed_is_an_invalid_action(self) -> None:
        assert refusal(make_session(OPTIONS), {"action": "subscribe", "bars": ["*"]}).code == 410
        assert refusal(make_session(), {"action": "subscribe", "orderbooks": ["*"]}).code == 410
        assert refusal(make_session(NEWS_FEED), {"action": "subscribe", "quotes": "*"}).code == 410

    def test_options_need_msgpack(self) -> None:
        session = make_session(OPTIONS, encoding="json")
        assert refusal(session, {"action": "subscribe", "trades": [OPTION]}).code == 412

    def test_every_option_quote_is_refused(self) -> None:
        session = make_session(OPTIONS)
        assert refusal(session, {"action": "subscribe", "quotes": [OPTION, "*"]}).code == 413
        assert change(session, "unsubscribe", quotes=["*"]) == Change(False, ())

    def test_more_topics_than_the_limit_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_module, "MOST_TOPICS", 3)
        session = make_session()
        change(session, "subscribe", quotes=["A", "B"])
        assert refusal(session, {"action": "subscribe", "quotes": ["C", "D"]}).code == 405
        change(session, "subscribe", quotes=["A", "B", "C"])
        change(session, "unsubscribe", quotes=["A"])
        change(session, "subscribe", trades=["A"])

    def test_a_refusal_of_the_feed_keeps_its_code(self) -> None:
        assert RelayError(999).message() == {"T": "error", "code": 999, "msg": "error"}
        assert RelayError(405, "no more").message()["msg"] == "no more"


class TestEncoding:
    def test_messages_are_json_as_text_and_either_as_binary(self) -> None:
        message = {"action": "subscribe", "quotes": ["AAPL"]}
        as_json = json.dumps(message).encode()
        assert read_message(as_json, text=True) == message
        assert read_message(as_json, text=False) == message
        assert read_message(b" \r\n\t" + as_json, text=False) == message
        assert read_message(msgpack.packb(message), text=False) == message
        assert read_message(msgpack.packb(message), text=True) is None

    @pytest.mark.parametrize(
        "payload",
        [
            b"", b"{", b"[]", b"7", b"null", b'{"a":"\xff"}', b'{"a":' * 100_000, b"[" * 100_000,
            b"\x81", b"\x81\xa1a", b"\x90", b"\x81\x01\x02", b"\x81\xa1a\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff", b"\x81\xa1a" * 100_000, b"\x91" * 100_000,
            b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12, b"\x81\xa1a\xa1\xff", b"\xc1",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("text", [True, False])
    def test_anything_else_cannot_be_read(self, payload: bytes, text: bool) -> None:
        assert read_message(payload, text=text) is None

    @given(st.binary(max_size=64), st.booleans())
    def test_no_bytes_make_a_session_fail(self, payload: bytes, text: bool) -> None:
        session = make_session()
        message = read_message(payload, text=text)
        with suppress(RelayError):
            session.receive(message)

    @given(
        st.dictionaries(
            st.sampled_from(["action", "key", "secret", "quotes", "bars", "corrections", "x"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text() | st.binary()
                | st.sampled_from(["auth", "subscribe", "unsubscribe", "AAPL", "*"]),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
                max_leaves=4,
            ),
        ),
        st.booleans(),
    )  # fmt: skip
    def test_no_message_makes_a_session_fail(
        self, message: dict[str, Any], logged_in: bool
    ) -> None:
        session = make_session(logged_in=logged_in)
        with suppress(RelayError):
            asked = session.receive(message)
            if isinstance(asked, Change):
                session.apply(asked)
            encode_control(session.acknowledgement(), "json")

    def test_a_control_message_is_alone_in_its_array(self) -> None:
        message = {"T": "success", "msg": "connected"}
        assert encode_control(message, "json") == b'[{"T":"success","msg":"connected"}]'
        assert msgpack.unpackb(encode_control(message, "msgpack")) == [message]
