"""What settings may be, where they come from, and that they keep their secrets."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import pickle
import shutil
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mdservice.errors import ConfigurationError
from mdservice.settings import SETTINGS, Settings, load_settings
from mdservice.settings.parsers import parse_url

KEYS = {"ALPACA_API_KEY": "PKTESTKEY00001", "ALPACA_SECRET_KEY": "sEcReT/of+Alpaca=="}


@pytest.fixture(autouse=True)
def _empty_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(
    environ: Mapping[str, str] | None = None,
    *,
    file: str | None = None,
    flags: Mapping[str, str] | None = None,
) -> Settings:
    config = None
    if file is not None:
        config = Path("given.toml")
        config.write_text(file)
    return load_settings(config, flags or {}, environ or {})


def refused(
    environ: Mapping[str, str] | None = None,
    *,
    file: str | None = None,
    flags: Mapping[str, str] | None = None,
) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(environ, file=file, flags=flags)
    return str(caught.value)


# Where values come from


def test_defaults_are_the_contracts(tmp_path: Path) -> None:
    settings = load({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert settings == Settings(
        api_key=None,
        secret_key=None,
        feed="iex",
        feed_url=None,
        rest_url="https://data.alpaca.markets",
        trading_url="https://paper-api.alpaca.markets",
        trading_stream_url=None,
        driver="auto",
        crypto_feed="us",
        options_feed="indicative",
        crypto_url=None,
        options_url=None,
        news_url=None,
        symbols=(),
        channels=("quotes",),
        news=(),
        positions="none",
        positions_interval=5.0,
        max_spread=10.0,
        gateway_positions=None,
        alerts=(),
        limits=(),
        on_trip=(),
        alert_webhook=None,
        redis_url=None,
        price_ttl=300,
        event_log=None,
        mute_after=30.0,
        stale_after=60.0,
        backlog=100_000,
        socket=tmp_path / "mdservice.sock",
        http="127.0.0.1:8001",
        api_token=None,
        log_format=settings.log_format,
        gateway_http="127.0.0.1:8002",
        relay="127.0.0.1:8765",
        relay_cert=None,
        relay_key_file=None,
        relay_keys={},
    )


def test_every_setting_has_its_documented_environment_names() -> None:
    names = {info.name: info.environment for info in SETTINGS}
    assert names.pop("api_key") == ("ALPACA_API_KEY", "APCA_API_KEY_ID")
    assert names.pop("secret_key") == ("ALPACA_SECRET_KEY", "APCA_API_SECRET_KEY")
    assert names.pop("redis_url") == ("MDSERVICE_REDIS_URL", "REDIS_URL")
    assert names == {name: (f"MDSERVICE_{name.upper()}",) for name in names}


def test_flags_beat_the_environment_which_beats_the_file() -> None:
    file = '[mdservice]\nfeed = "sip"\nprice_ttl = 10\nbacklog = 20000\n'
    environ = {"MDSERVICE_FEED": "boats", "MDSERVICE_PRICE_TTL": "20"}
    settings = load(environ, file=file, flags={"feed": "test"})
    assert (settings.feed, settings.price_ttl, settings.backlog) == ("test", 20, 20_000)
    assert settings.sources == {
        "feed": "flag --feed",
        "price_ttl": "environment variable MDSERVICE_PRICE_TTL",
        "backlog": "file given.toml",
    }


def test_mdservice_toml_of_the_working_folder_is_read() -> None:
    Path("mdservice.toml").write_text('[mdservice]\nsymbols = ["aapl", "MSFT"]\n')
    assert load().symbols == ("AAPL", "MSFT")


def test_a_named_file_takes_the_place_of_the_working_folders() -> None:
    Path("mdservice.toml").write_text("[mdservice]\nprice_ttl = 1\n")
    settings = load(file="[mdservice]\nbacklog = 30000\n")
    assert (settings.price_ttl, settings.backlog) == (300, 30_000)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("api_key", "ALPACA_API_KEY", "APCA_API_KEY_ID"),
        ("secret_key", "ALPACA_SECRET_KEY", "APCA_API_SECRET_KEY"),
        ("redis_url", "MDSERVICE_REDIS_URL", "REDIS_URL"),
    ],
)
def test_the_first_variable_that_is_set_wins(name: str, first: str, second: str) -> None:
    one, other = ("redis://one", "redis://other") if name == "redis_url" else ("one", "other")
    assert getattr(load({first: one, second: other}), name) == one
    assert getattr(load({first: " ", second: other}), name) == other
    assert getattr(load({second: other}), name) == other


def test_an_empty_variable_is_an_unset_one() -> None:
    settings = load({"MDSERVICE_FEED": "", "ALPACA_API_KEY": "  ", "REDIS_URL": ""})
    assert settings.sources == {}
    assert settings.simulated


def test_an_empty_variable_leaves_the_files_value() -> None:
    assert load({"MDSERVICE_FEED": ""}, file='[mdservice]\nfeed = "sip"').feed == "sip"


def test_blanks_around_a_value_do_not_count() -> None:
    settings = load({"ALPACA_API_KEY": "key\n", "MDSERVICE_FEED": " sip "})
    assert (settings.api_key, settings.feed) == ("key", "sip")


# Names that are not known


def test_an_unknown_name_in_the_file_is_named_with_the_file() -> None:
    message = refused(file='[mdservice]\nredis-url = "redis://x"\n')
    assert "given.toml" in message
    assert "'redis-url'" in message
    assert "did you mean redis_url?" in message


def test_an_unknown_variable_is_named() -> None:
    message = refused({"MDSERVICE_SYMBOL": "AAPL"})
    assert "MDSERVICE_SYMBOL is no setting; did you mean MDSERVICE_SYMBOLS?" in message


def test_the_file_knows_no_secret_by_its_environments_name() -> None:
    assert "'alpaca_api_key'" in refused(file='[mdservice]\nalpaca_api_key = "hidden-value"')


@pytest.mark.parametrize(
    "variable",
    [
        "MDSERVICE_SERVICE_HOST",
        "MDSERVICE_SERVICE_PORT",
        "MDSERVICE_SERVICE_PORT_HTTP",
        "MDSERVICE_PORT",
        "MDSERVICE_PORT_8000_TCP",
        "MDSERVICE_PORT_8000_TCP_ADDR",
        "MDSERVICE_GATEWAY_SERVICE_HOST",
        "MDSERVICE_GATEWAY_PORT",
        "MDSERVICE_GATEWAY_PORT_8002_TCP_PROTO",
    ],
)
def test_what_kubernetes_injects_is_ignored(variable: str) -> None:
    assert load({variable: "tcp://10.0.0.1:8000"}).sources == {}


def test_a_variable_that_only_resembles_kubernetes_is_refused() -> None:
    assert "MDSERVICE_HTTP_PORT" in refused({"MDSERVICE_HTTP_PORT": "8000"})


@pytest.mark.parametrize(
    "name", ["api_key", "secret_key", "api_token", "relay_keys", "nonsense", "sources"]
)
def test_there_is_no_flag_for_a_secret(name: str) -> None:
    assert repr(name) in refused(flags={name: "x"})


# Files that are not right


def test_a_named_file_that_is_missing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: there is no such file"):
        load_settings(Path("nowhere.toml"), {}, {})


def test_a_file_without_the_section_is_refused() -> None:
    assert "given.toml: has no [mdservice] section" in refused(file="")
    assert "has no [mdservice] section" in refused(file="[other]\nfeed = 'iex'\n")
    assert "'feed' stands outside of [mdservice]" in refused(file='feed = "iex"\n[mdservice]\n')
    assert "has no [mdservice] section" in refused(file="mdservice = 3\n")


def test_sections_of_others_are_left_to_them() -> None:
    assert load(file="[other]\nx = 1\n[mdservice]\nprice_ttl = 7\n").price_ttl == 7


@pytest.mark.parametrize(
    "text",
    [
        "[mdservice]\nsecret_key = hidden-value\n",
        "[mdservice]\nhidden-value hidden-value\n",
        "[mdservice]\nsecret_key = 'hidden-value\n",
        "[mdservice]\nhidden-value = 1\nhidden-value = 2\n",
        "[mdservice]\n[mdservice]\n",
        "[mdservice]\nx = {hidden-value = 1, hidden-value = 2}\n",
    ],
)
def test_broken_toml_is_reported_by_its_place_and_not_quoted(text: str) -> None:
    message = refused(file=text)
    assert "given.toml: is not valid TOML" in message
    assert "at line" in message or "at end of document" in message
    assert "hidden" not in message


def test_a_file_that_is_not_text_is_refused_without_its_bytes() -> None:
    Path("x.toml").write_bytes(b"[mdservice]\nsecret_key = 'hidden\xff'")
    with pytest.raises(ConfigurationError, match=r"x\.toml: is not UTF-8") as caught:
        load_settings(Path("x.toml"), {}, {})
    assert caught.value.__cause__ is None
    assert "hidden" not in str(caught.value)


def test_a_folder_is_no_file() -> None:
    Path("mdservice.toml").mkdir()
    assert "mdservice.toml: cannot be read: Is a directory" in refused()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused() -> None:
    Path("mdservice.toml").touch(mode=0)
    assert "mdservice.toml: cannot be read: Permission denied" in refused()


# Values


BAD = {
    "group": ["a b", "{desk}", "x" * 65],
    "feed": ["otc", "IEX", "iex,sip"],
    "feed_url": ["https://x", "stream.data.alpaca.markets", "ws://", "ws://x:99999", "ws://x:0"],
    "rest_url": ["ftp://x", "data.alpaca.markets", "https://"],
    "trading_url": ["ws://x", "https:///v2"],
    "trading_stream_url": [
        "https://x",
        "wss://stream.data.alpaca.markets/v2/iex",
        "wss://api.alpaca.markets",
    ],
    "driver": ["alpaca", "raw"],
    "crypto_feed": ["eu", "US", "us,eu-1", "simulator"],
    "options_feed": ["iex", "OPRA"],
    "crypto_url": ["https://x", "wss://stream.data.alpaca.markets/v1beta3/crypto"],
    "options_url": ["x", "wss://stream.data.alpaca.markets"],
    "news_url": ["http://x", "wss://stream.data.alpaca.markets/v1beta1"],
    "symbols": ["AAPL,MS FT", "A" * 40, "=1+1"],
    "channels": ["quote", "quotes,tick", "Trades", ",", "corrections", "cancelErrors", "news", "*"],
    "news": ["AAPL,MS FT", "A" * 40],
    "positions": ["all", "file:", "http://", "ftp://x/y"],
    "mark": ["bid", "MID", "mid,last"],
    "max_spread": ["-1", "-0.1", "nan", "inf", "200.1", "wide", "%"],
    "positions_interval": ["0", "-1", "nan", "inf", "soon", "1e400"],
    "gateway_positions": ["x", "https://"],
    "alerts": ["AAPL", "AAPL pnl < -500; AAPL pnl", "total stale"],
    "limits": [
        "AAPL",
        "AAPL value > 5 trip; AAPL exposure > 5",
        "total qty > 1",
        "A qty > 1 tripp",
    ],
    "on_trip": ["suspend", "cancel_orders,close_positions", "SUSPEND_TRADE", "off,cancel_orders"],
    "redis_url": ["localhost:6379", "http://x", "unix://", "redis://x:port", "redis+sentinel://a"],
    "renew_prices": ["maybe", "2", "on off"],
    "price_ttl": ["0", "-3", "1.5", "five", "1e3", "9" * 30],
    "event_log": ["news", "trade:AAPL", "price:AAPL", "mdservice:writer:1", "a\nb", "x" * 600],
    "key_prefix": ["a b", "a*", "{a}", "[a]", "a\\", "ä", "x" * 65, "price:", "mdservice:x"],
    "mute_after": ["0", "x"],
    "stale_after": ["-0.1", "x"],
    "backlog": ["9999", "many", "-100000"],
    "socket": ["/" + "x" * 108, "~no-user-of-this-name/x.sock"],
    "http": ["8000", ":8000", "localhost", "localhost:99999", "http://localhost:80", "::1:80"],
    "log_format": ["text", "JSON"],
    "gateway_http": ["8002", "x:y", "off"],
    "relay": ["8765", ":8765", "localhost", "ws://localhost:8765", "on", "0.0.0.0:8765"],
    "journal": ["~no-user-of-this-name/journal"],
    "journal_days": ["-1", "30d", "1.5"],
    "journal_bytes": ["-1", "5GB"],
    "relay_cert": ["~no-user-of-this-name/cert.pem", "cert.pem"],
    "relay_key_file": ["~no-user-of-this-name/key.pem", "key.pem"],
}
CASES = [(name, value) for name, texts in BAD.items() for value in texts]


def test_there_are_bad_values_for_every_setting_that_is_not_secret() -> None:
    assert set(BAD) == {info.name for info in SETTINGS if not info.secret}


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_value_is_named_with_its_setting_and_variable(name: str, value: str) -> None:
    variable = next(info.environment[0] for info in SETTINGS if info.name == name)
    message = refused({variable: value})
    assert message.startswith(f"setting {name} (environment variable {variable}): ")


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_value_is_named_with_its_flag(name: str, value: str) -> None:
    flag = "--" + name.replace("_", "-")
    assert refused(flags={name: value}).startswith(f"setting {name} (flag {flag}): ")


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_value_is_named_with_its_file(name: str, value: str) -> None:
    message = refused(file=f"[mdservice]\n{name} = {json.dumps(value)}\n")
    assert message.startswith(f"setting {name} (file given.toml): ")


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_value_given_in_python_is_a_configuration_error(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^setting {name} \(given in Python\): "):
        Settings(**{name: value})


@pytest.mark.parametrize("name", [info.name for info in SETTINGS])
@pytest.mark.parametrize("value", ["true", "[1, 2]", "1979-05-27", "{a = 1}"])
def test_toml_of_the_wrong_type_is_refused(name: str, value: str) -> None:
    if (name, value) == ("renew_prices", "true"):
        assert load(file="[mdservice]\nrenew_prices = true\n").renew_prices
        return
    assert f"setting {name} (file given.toml)" in refused(file=f"[mdservice]\n{name} = {value}\n")


GOOD = {
    "feed": ("delayed_sip", "delayed_sip"),
    "feed_url": ("ws://127.0.0.1:9000/stream/", "ws://127.0.0.1:9000/stream"),
    "rest_url": ("http://[::1]:80/", "http://[::1]:80"),
    "trading_url": ("https://api.alpaca.markets", "https://api.alpaca.markets"),
    "trading_stream_url": (
        "wss://paper-api.alpaca.markets/stream",
        "wss://paper-api.alpaca.markets/stream",
    ),
    "driver": ("websockets", "websockets"),
    "crypto_feed": (" eu-1 ", "eu-1"),
    "options_feed": ("opra", "opra"),
    "crypto_url": (
        "ws://127.0.0.1:9000/v1beta3/crypto/us/",
        "ws://127.0.0.1:9000/v1beta3/crypto/us",
    ),
    "options_url": ("wss://options.example/opra", "wss://options.example/opra"),
    "news_url": ("wss://news.example", "wss://news.example"),
    "symbols": (
        "aapl, BRK.B,,*,AAPL,btc/usd,aapl261218c00200000",
        ("AAPL", "BRK.B", "*", "BTC/USD", "AAPL261218C00200000"),
    ),
    "channels": ("trades, quotes,,trades,updatedBars", ("trades", "quotes", "updatedBars")),
    "news": ("aapl,*", ("AAPL", "*")),
    "positions": ("file:positions.json", "file:positions.json"),
    "positions_interval": ("0.5", 0.5),
    "mark": ("exit", "exit"),
    "max_spread": (" 2.5 % ", 2.5),
    "gateway_positions": ("http://localhost:8000/api/v1/positions",) * 2,
    "alerts": ("aapl pnl<-500 ;; * stale;", ("aapl pnl<-500", "* stale")),
    "limits": ("aapl qty>5 ;; total exposure > 9 trip", ("aapl qty>5", "total exposure > 9 trip")),
    "on_trip": (" cancel_orders,suspend_trade,", ("cancel_orders", "suspend_trade")),
    "redis_url": ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
    "renew_prices": ("Off", False),
    "price_ttl": ("1", 1),
    "event_log": ("price.log", "price.log"),
    "key_prefix": (" desk1: ", "desk1:"),
    "mute_after": ("12", 12.0),
    "stale_after": ("1e3", 1000.0),
    "backlog": ("10000", 10_000),
    "socket": ("/run/x.sock", Path("/run/x.sock")),
    "http": ("[::1]:8000", "[::1]:8000"),
    "log_format": ("json", "json"),
    "gateway_http": ("0.0.0.0:9", "0.0.0.0:9"),
    "relay": ("localhost:8765", "localhost:8765"),
    "journal": ("/var/lib/journal", Path("/var/lib/journal")),
    "journal_days": ("0", 0),
    "journal_bytes": ("5000", 5_000),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_value_is_the_same_from_every_source(name: str) -> None:
    text, value = GOOD[name]
    assert getattr(load({f"MDSERVICE_{name.upper()}": text}), name) == value
    assert getattr(load(flags={name: text}), name) == value
    assert getattr(load(file=f"[mdservice]\n{name} = {json.dumps(text)}\n"), name) == value
    assert getattr(Settings(**{name: text}), name) == value


def test_tomls_own_types_are_taken() -> None:
    file = "[mdservice]\nprice_ttl = 9\nmute_after = 3\nstale_after = 2.5\nsymbols = []\n"
    settings = load(file=file)
    assert (settings.price_ttl, settings.mute_after, settings.stale_after) == (9, 3.0, 2.5)
    assert settings.symbols == ()


def test_a_relative_socket_belongs_to_the_working_folder(tmp_path: Path) -> None:
    socket = attrs.evolve(Settings(), socket=Path("x.sock")).socket
    assert socket == tmp_path / "x.sock"


@pytest.mark.parametrize("http", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.9.9.9:1"])
def test_http_on_loopback_needs_no_token(http: str) -> None:
    assert load({"MDSERVICE_HTTP": http}).http == http


@pytest.mark.parametrize("http", ["0.0.0.0:8000", "[::]:8000", "10.0.0.1:8000", "desk:8000"])
def test_http_off_loopback_needs_a_token(http: str) -> None:
    message = refused({"MDSERVICE_HTTP": http})
    assert message.startswith("setting http (environment variable MDSERVICE_HTTP)")
    assert "MDSERVICE_API_TOKEN" in message
    assert load({"MDSERVICE_HTTP": http, "MDSERVICE_API_TOKEN": "t0ken"}).http == http


def test_http_off_loopback_needs_a_token_in_python_too() -> None:
    with pytest.raises(ConfigurationError, match=r"setting http \(given in Python\)"):
        Settings(http="0.0.0.0:8000")


# Secrets


SECRET_SETTINGS = {
    "ALPACA_API_KEY": "PK0hidden1",
    "ALPACA_SECRET_KEY": "hidden2",
    "MDSERVICE_API_TOKEN": "hidden3",
    "MDSERVICE_REDIS_URL": "rediss://me:hidden4@db:6379/2?password=hidden5&db=2",
    "MDSERVICE_FEED_URL": "wss://me:hidden6@stream.example/v2/iex?token=hidden7",
    "MDSERVICE_REST_URL": "https://me:hidden8@data.example",
    "MDSERVICE_POSITIONS": "https://desk.example/positions?key=hidden9",
    "MDSERVICE_RELAY_KEYS": "hidden10:hidden11,hidden12:hidden:13",
}


def test_secrets_are_in_no_view_of_the_settings() -> None:
    settings = load(SECRET_SETTINGS)
    for view in (repr(settings), str(settings), json.dumps(settings.shown())):
        assert "hidden" not in view
        assert "db:6379/2" in view
        assert "stream.example/v2/iex" in view


def test_all_secret_values_are_known() -> None:
    settings = load({**SECRET_SETTINGS, "MDSERVICE_TRADING_URL": "https://u:hi%2Fdden@x"})
    expected = {"PK0hidden1", "hi/dden", "hi%2Fdden", "hidden:13"}
    expected |= {f"hidden{n}" for n in range(2, 13)}
    assert set(settings.secret_values()) == expected


def test_what_is_shown_is_json_of_every_setting() -> None:
    shown = load({"MDSERVICE_SYMBOLS": "AAPL", **KEYS}).shown()
    assert set(shown) == {info.name for info in SETTINGS}
    assert json.loads(json.dumps(shown)) == shown
    assert shown["symbols"] == ["AAPL"]
    assert shown["api_key"] == "***"
    assert shown["api_token"] is None
    assert shown["relay_keys"] is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALPACA_API_KEY", "hidden value"),
        ("ALPACA_SECRET_KEY", "hiddenvälue"),
        ("MDSERVICE_API_TOKEN", "hidden\nvalue"),
        ("MDSERVICE_REDIS_URL", "redis://me:hidden/value@db"),
        ("MDSERVICE_REDIS_URL", "redis://me:hidden#value@db:port"),
        ("MDSERVICE_REDIS_URL", "me:hidden@db"),
        ("REDIS_URL", "hidden"),
        ("MDSERVICE_FEED_URL", "wss://me:hidden[@db"),
        ("MDSERVICE_FEED_URL", "http://me:hidden@db"),
        ("MDSERVICE_POSITIONS", "ftp://me:hidden@db"),
        ("MDSERVICE_POSITIONS", "me:hidden@db"),
        ("MDSERVICE_HTTP", "me:hidden@localhost:80"),
        ("MDSERVICE_GATEWAY_HTTP", "http://me:hidden@localhost:80"),
        ("MDSERVICE_FEED", "wss://me:hidden@db"),
        ("MDSERVICE_RELAY", "ws://me:hidden@localhost:80"),
        ("MDSERVICE_RELAY_KEYS", "hidden"),
        ("MDSERVICE_RELAY_KEYS", "hidden:"),
        ("MDSERVICE_RELAY_KEYS", ":hidden"),
        ("MDSERVICE_RELAY_KEYS", "good:hidden,hidden"),
        ("MDSERVICE_RELAY_KEYS", "good:hidden value"),
        ("MDSERVICE_RELAY_KEYS", "hidden:one,hidden:two"),
        ("MDSERVICE_RELAY_KEYS", ","),
    ],
)
def test_a_bad_value_that_may_hold_a_secret_is_not_quoted(variable: str, value: str) -> None:
    message = refused({variable: value})
    assert variable in message
    assert "hidden" not in message


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=8, max_size=60))
@example("the valu")
def test_no_bad_secret_is_ever_quoted(value: str) -> None:
    for name in ("api_key", "redis_url", "feed_url"):
        with contextlib.suppress(ConfigurationError):
            Settings(**{name: value})
            continue
        with pytest.raises(ConfigurationError) as caught:
            Settings(**{name: value})
        message = str(caught.value)
        if (
            value in message
        ):  # "the valu" is in the text itself, which another value leaves as it is
            with pytest.raises(ConfigurationError) as other:
                Settings(**{name: codecs.encode(value, "rot13")})
            assert str(other.value) == message


# The relay


def test_the_relay_is_on_with_the_simulator_and_off_otherwise() -> None:
    for settings in (load(), load({"MDSERVICE_FEED": "simulator", "REDIS_URL": "redis://db"})):
        assert settings.relay == "127.0.0.1:8765"
        assert settings.relay_is_default
    real = load(KEYS)
    assert real.relay is None
    assert not real.relay_is_default
    assert load({**KEYS, "MDSERVICE_RELAY": "127.0.0.1:8765"}).relay == "127.0.0.1:8765"


def test_a_changed_copy_has_the_default_relay_only_with_the_simulator() -> None:
    simulated = attrs.evolve(Settings(), feed="simulator", redis_url="redis://db")
    assert simulated.relay_is_default
    assert attrs.evolve(Settings(), redis_url="redis://db").relay is None


@pytest.mark.parametrize("word", ["off", "OFF", " off "])
def test_the_relay_can_be_switched_off_on_the_simulator(word: str) -> None:
    for settings in (
        load({"MDSERVICE_RELAY": word}),
        load(file=f'[mdservice]\nrelay = "{word}"\n'),
        load(flags={"relay": word}),
        load({"MDSERVICE_RELAY": "127.0.0.1:9"}, flags={"relay": word}),
        Settings(relay=None),
    ):
        assert settings.simulated
        assert settings.relay is None
        assert not settings.relay_is_default
        assert attrs.evolve(settings, symbols=("AAPL",)).relay is None


def test_http_can_be_switched_off_likewise() -> None:
    assert load({"MDSERVICE_HTTP": "127.0.0.1:9"}, flags={"http": "off"}).http is None


def test_a_chosen_relay_is_not_the_default_also_at_its_address() -> None:
    assert not load({"MDSERVICE_RELAY": "127.0.0.1:8765"}).relay_is_default
    assert not Settings(relay="127.0.0.1:8765").relay_is_default


@pytest.mark.parametrize("address", ["0.0.0.0:8765", "[::]:8765", "10.0.0.1:8765", "desk:8765"])
def test_a_relay_off_loopback_needs_keys(address: str) -> None:
    message = refused({"MDSERVICE_RELAY": address})
    assert message.startswith("setting relay (environment variable MDSERVICE_RELAY)")
    assert "MDSERVICE_RELAY_KEYS" in message
    assert load({"MDSERVICE_RELAY": address, "MDSERVICE_RELAY_KEYS": "k:s"}).relay == address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_relay_is_no_feed_of_its_own(host: str) -> None:
    feed = {"MDSERVICE_FEED": "simulator", "MDSERVICE_FEED_URL": f"ws://{host}:8765/v2/iex"}
    assert load(feed).relay is None
    chosen = {**feed, "MDSERVICE_RELAY": "127.0.0.1:8765"}
    assert "feed_url" in refused(chosen)
    assert load({**feed, "MDSERVICE_RELAY": "127.0.0.1:8766"}).relay == "127.0.0.1:8766"


@pytest.mark.parametrize(
    "line",
    [
        'relay_keys = "bot:one, notebook:t:w:o,"',
        'relay_keys = ["bot:one", "notebook:t:w:o"]',
        'relay_keys = { bot = "one", notebook = "t:w:o" }',
    ],
)
def test_relay_keys_are_pairs_of_key_and_secret(line: str) -> None:
    keys = {"bot": "one", "notebook": "t:w:o"}
    settings = load(file=f"[mdservice]\n{line}\n")
    assert settings.relay_keys == keys
    assert attrs.evolve(settings, relay="127.0.0.1:1").relay_keys == keys
    assert load().relay_keys == {}


def test_settings_with_relay_keys_can_be_compared_hashed_and_copied() -> None:
    settings = Settings(relay_keys="bot:one")
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(settings) == hash(attrs.evolve(settings))
    assert settings != Settings(relay_keys="bot:two")


def _certificate(folder: Path, name: str) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made = [*command, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    return str(cert), str(key)


def test_the_relays_certificate_and_key_are_loaded(tmp_path: Path) -> None:
    cert, key = _certificate(tmp_path, "one")
    given = {"MDSERVICE_RELAY_CERT": cert, "MDSERVICE_RELAY_KEY_FILE": key}
    settings = load({**given, "MDSERVICE_RELAY": "127.0.0.1:0"})
    assert (settings.relay_cert, settings.relay_key_file) == (Path(cert), Path(key))
    settings.require_runnable()
    assert settings.relay_tls() is not None
    assert Settings().relay_tls() is None


def test_the_relay_sends_no_tls_record_before_the_clients_request(tmp_path: Path) -> None:
    """One would race with the request in a client that reads and writes in two threads."""
    cert, key = _certificate(tmp_path, "one")
    server_tls = Settings(relay_cert=Path(cert), relay_key_file=Path(key)).relay_tls()
    assert server_tls is not None
    client_tls = ssl.create_default_context(cafile=cert)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_tls.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = server_tls.wrap_bio(to_server, to_client, server_side=True)
    for end in (client, server):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    client.do_handshake()
    assert not to_client.pending
    server.do_handshake()
    assert client.version() == "TLSv1.3"
    assert not to_client.pending


def test_a_pair_that_cannot_serve_is_refused_with_its_setting(tmp_path: Path) -> None:
    cert, key = _certificate(tmp_path, "one")
    other_cert, other_key = _certificate(tmp_path, "other")
    locked = str(tmp_path / "locked.key")
    command = ["openssl", "ec", "-in", key, "-aes128", "-passout", "pass:hidden", "-out", locked]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    for given_cert, given_key, named, reason in (
        (cert, str(tmp_path / "none.key"), "relay_key_file", "No such file"),
        (str(tmp_path / "none.pem"), key, "relay_cert", "No such file"),
        (str(tmp_path), key, "relay_cert", "Is a directory"),
        (key, key, "relay_cert", "no certificate"),
        (cert, cert, "relay_key_file", "no private key"),
        (cert, other_key, "relay_key_file", "does not belong to"),
        (other_cert, key, "relay_key_file", "does not belong to"),
        (cert, locked, "relay_key_file", "passphrase"),
    ):
        settings = Settings(relay_cert=given_cert, relay_key_file=given_key)
        with pytest.raises(ConfigurationError, match=rf"^setting {named} ") as caught:
            settings.require_runnable()
        assert reason in str(caught.value)


def test_the_relays_certificate_and_key_are_given_together(tmp_path: Path) -> None:
    message = refused({"MDSERVICE_RELAY_CERT": "cert.pem"})
    assert message.startswith("setting relay_cert (environment variable MDSERVICE_RELAY_CERT)")
    assert "MDSERVICE_RELAY_KEY_FILE" in message
    assert "MDSERVICE_RELAY_CERT" in refused({"MDSERVICE_RELAY_KEY_FILE": "key.pem"})


# The simulator's rule


def test_nothing_set_means_the_simulator() -> None:
    for settings in (load(), Settings()):
        assert settings.simulated
        assert settings.simulator_embedded
        assert settings.feed_name == "simulator"
        assert settings.stream_url("stocks") is None
        settings.require_runnable()


def test_settings_that_do_not_point_at_the_real_world_leave_the_simulator_on() -> None:
    settings = load(
        {
            "MDSERVICE_SYMBOLS": "AAPL,BTC/USD",
            "MDSERVICE_CHANNELS": "trades",
            "MDSERVICE_NEWS": "*",
            "MDSERVICE_HTTP": "127.0.0.1:0",
        },
        file='[mdservice]\nlog_format = "json"\ntrading_url = "https://api.alpaca.markets"\n',
    )
    assert settings.simulated


REAL = {
    "api_key": "key",
    "secret_key": "secret",
    "feed": "iex",
    "crypto_feed": "eu-1",
    "options_feed": "indicative",
    "feed_url": "ws://localhost:1",
    "crypto_url": "ws://localhost:1",
    "options_url": "ws://localhost:1",
    "news_url": "ws://localhost:1",
    "trading_stream_url": "ws://localhost:1/stream",
    "redis_url": "redis://localhost",
    "positions": "file:x.json",
}


@pytest.mark.parametrize("name", REAL)
def test_anything_that_points_at_the_real_world_turns_the_simulator_off(name: str) -> None:
    missing = "secret_key" if name == "api_key" else "api_key"
    for settings in (
        load(file=f'[mdservice]\n{name} = "{REAL[name]}"\n'),
        Settings(**{name: REAL[name]}),
        attrs.evolve(Settings(**{name: REAL[name]}), price_ttl=5),
        pickle.loads(pickle.dumps(Settings(**{name: REAL[name]}))),
    ):
        assert not settings.simulated
        assert not settings.simulator_embedded
        with pytest.raises(ConfigurationError, match=rf"^{missing} is missing") as caught:
            settings.require_runnable()
        assert name in str(caught.value)
        assert ("ALPACA_SECRET_KEY" if name == "api_key" else "ALPACA_API_KEY") in str(caught.value)


def test_the_missing_key_is_reported_with_what_keeps_the_simulator_off() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({"REDIS_URL": "redis://me:hidden@db"}).require_runnable()
    assert "redis_url (environment variable REDIS_URL)" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_the_default_feed_set_openly_counts_as_set() -> None:
    assert not load({"MDSERVICE_FEED": "iex"}).simulated
    assert not load(flags={"feed": "iex"}).simulated
    assert not load(file='[mdservice]\nfeed = "iex"').simulated


def test_a_default_given_openly_in_python_counts_as_set() -> None:
    settings = Settings(feed="iex", positions="none", key_prefix="")
    assert settings.sources == dict.fromkeys(("feed", "positions", "key_prefix"), "given in Python")
    assert (settings.feed, settings.positions, settings.key_prefix) == ("iex", "none", "")
    assert not settings.simulated


def test_a_changed_copy_keeps_what_was_set() -> None:
    settings = attrs.evolve(load({"MDSERVICE_FEED": "iex"}), price_ttl=5)
    assert settings.sources == {
        "feed": "environment variable MDSERVICE_FEED",
        "price_ttl": "given in Python",
    }
    copy = attrs.evolve(Settings(), symbols=("AAPL",))
    assert copy.sources == {"symbols": "given in Python"}
    assert copy.simulated


def test_what_a_changed_copy_unsets_is_not_set() -> None:
    settings = attrs.evolve(load({"REDIS_URL": "redis://db"}), redis_url=None)
    assert settings.simulated
    assert settings.sources == {}


def test_the_simulator_may_be_asked_for_with_a_real_redis() -> None:
    settings = load({"MDSERVICE_FEED": "simulator", "REDIS_URL": "redis://db"})
    assert settings.simulator_embedded
    settings.require_runnable()


def test_a_simulator_elsewhere_needs_no_key() -> None:
    settings = Settings(feed="simulator", feed_url="ws://127.0.0.1:9/v2/iex")
    assert settings.simulated
    assert not settings.simulator_embedded
    assert settings.stream_url("stocks") == "ws://127.0.0.1:9/v2/iex"
    settings.require_runnable()


def test_alpacas_positions_need_the_keys_also_with_the_simulator() -> None:
    with pytest.raises(ConfigurationError, match=r"^api_key is missing"):
        Settings(feed="simulator", positions="alpaca").require_runnable()


@pytest.mark.parametrize(
    ("feed", "path"),
    [
        ("iex", "/v2/iex"),
        ("sip", "/v2/sip"),
        ("delayed_sip", "/v2/delayed_sip"),
        ("boats", "/v1beta1/boats"),
        ("overnight", "/v1beta1/overnight"),
        ("test", "/v2/test"),
    ],
)
def test_a_feeds_url_follows_from_its_name(feed: str, path: str) -> None:
    settings = load({**KEYS, "MDSERVICE_FEED": feed})
    settings.require_runnable()
    assert settings.feed_name == feed
    assert settings.stream_url("stocks") == f"wss://stream.data.alpaca.markets{path}"


HOST = "wss://stream.data.alpaca.markets"
PRIVATE = {"MDSERVICE_FEED_URL": "ws://127.0.0.1:7/v2/iex"}
SANDBOX = "wss://stream.data.sandbox.alpaca.markets"
SIMULATED = {"MDSERVICE_FEED": "simulator"}


@pytest.mark.parametrize(
    ("given", "crypto", "options", "news"),
    [
        ({}, None, None, None),
        (SIMULATED, None, None, None),
        (KEYS, f"{HOST}/v1beta3/crypto/us", f"{HOST}/v1beta1/indicative", f"{HOST}/v1beta1/news"),
        (
            {**KEYS, "MDSERVICE_CRYPTO_FEED": "eu-1", "MDSERVICE_OPTIONS_FEED": "opra"},
            f"{HOST}/v1beta3/crypto/eu-1",
            f"{HOST}/v1beta1/opra",
            f"{HOST}/v1beta1/news",
        ),
        (
            {**KEYS, "MDSERVICE_NEWS_URL": "ws://127.0.0.1:8/news"},
            f"{HOST}/v1beta3/crypto/us",
            f"{HOST}/v1beta1/indicative",
            "ws://127.0.0.1:8/news",
        ),
        # Another stock feed is not known to have crypto, options and news.
        (
            {**KEYS, **PRIVATE, "MDSERVICE_CRYPTO_URL": "ws://127.0.0.1:8/c"},
            "ws://127.0.0.1:8/c",
            f"{HOST}/v1beta1/indicative",
            f"{HOST}/v1beta1/news",
        ),
        (
            {**KEYS, "MDSERVICE_FEED_URL": f"{SANDBOX}/v2/iex"},
            f"{SANDBOX}/v1beta3/crypto/us",
            f"{SANDBOX}/v1beta1/indicative",
            f"{SANDBOX}/v1beta1/news",
        ),
        # A simulator has all streams on one port.
        (
            {**SIMULATED, **PRIVATE, "MDSERVICE_CRYPTO_FEED": "us-1"},
            "ws://127.0.0.1:7/v1beta3/crypto/us-1",
            "ws://127.0.0.1:7/v1beta1/indicative",
            "ws://127.0.0.1:7/v1beta1/news",
        ),
        (
            {**SIMULATED, "MDSERVICE_CRYPTO_URL": "ws://127.0.0.1:8/c"},
            "ws://127.0.0.1:8/c",
            None,
            None,
        ),
    ],
)
def test_each_stream_has_its_url(
    given: dict[str, str], crypto: str | None, options: str | None, news: str | None
) -> None:
    settings = load(given)
    settings.require_runnable()
    found = [settings.stream_url(feed) for feed in ("crypto", "options", "news")]
    assert found == [crypto, options, news]


def test_a_name_that_only_ends_like_alpacas_is_another_host() -> None:
    settings = load({**KEYS, "MDSERVICE_FEED_URL": "wss://notalpaca.markets/v2/iex"})
    assert settings.stream_url("crypto") == f"{HOST}/v1beta3/crypto/us"


@pytest.mark.parametrize("name", ["crypto_feed", "crypto_url", "options_url", "news_url"])
def test_a_stream_of_the_real_world_needs_the_keys(name: str) -> None:
    given = {f"MDSERVICE_{name.upper()}": "us" if name == "crypto_feed" else "ws://127.0.0.1:7"}
    with pytest.raises(ConfigurationError, match=r"api_key is missing"):
        load(given).require_runnable()
    load({**given, **KEYS}).require_runnable()


def test_each_stream_has_alpacas_name() -> None:
    settings = load({**KEYS, "MDSERVICE_FEED": "sip", "MDSERVICE_CRYPTO_FEED": "eu-1"})
    feeds = ("stocks", "crypto", "options", "news")
    assert [settings.feed_name_of(feed) for feed in feeds] == ["sip", "eu-1", "indicative", "news"]
    simulated = [Settings().feed_name_of(feed) for feed in feeds]
    assert simulated == ["simulator", "us", "indicative", "news"]


def test_alpacas_history_is_not_asked_for_the_records_of_another_stream() -> None:
    own = {**KEYS, "MDSERVICE_CRYPTO_URL": "ws://127.0.0.1:8/c"}
    settings = load(own)
    assert settings.history_known_of("stocks")
    assert settings.history_known_of("options")
    assert not settings.history_known_of("crypto")
    assert load({**own, "MDSERVICE_REST_URL": "http://127.0.0.1:8"}).history_known_of("crypto")
    assert not load({**KEYS, **PRIVATE}).history_known_of("stocks")
    simulated = load({**SIMULATED, **PRIVATE, "MDSERVICE_NEWS_URL": "ws://127.0.0.1:8/n"})
    assert simulated.history_known_of("stocks")
    assert simulated.history_known_of("crypto")
    assert not simulated.history_known_of("news")


@pytest.mark.parametrize(
    ("channel", "hint"),
    [
        ("tick", "known are quotes, trades, bars, updatedBars, dailyBars, statuses, lulds, "),
        ("corrections", "comes with trades"),
        ("cancelErrors", "comes with trades"),
        ("news", "MDSERVICE_NEWS"),
        (",", "at least one"),
    ],
)
def test_a_channel_that_cannot_be_set_is_refused_with_a_hint(channel: str, hint: str) -> None:
    assert hint in refused({"MDSERVICE_CHANNELS": channel})


REST = "https://data.alpaca.markets"
TRADING = "https://paper-api.alpaca.markets"


@pytest.mark.parametrize(
    ("given", "rest", "trading"),
    [
        (KEYS, REST, TRADING),
        ({}, REST, TRADING),
        ({**KEYS, "MDSERVICE_REST_URL": "http://localhost:1"}, "http://localhost:1", TRADING),
        ({**KEYS, "MDSERVICE_TRADING_URL": "http://localhost:1"}, REST, "http://localhost:1"),
        (
            {"MDSERVICE_FEED": "simulator", "MDSERVICE_FEED_URL": "ws://localhost:2/v2/iex"},
            "http://localhost:2",
            "http://localhost:2",
        ),
        (
            {
                "MDSERVICE_FEED": "simulator",
                "MDSERVICE_FEED_URL": "ws://localhost:2/v2/iex",
                "MDSERVICE_REST_URL": "http://localhost:3",
            },
            "http://localhost:3",
            "http://localhost:2",
        ),
    ],
)
def test_rest_is_asked_where_it_was_set_else_at_a_simulators_own_port(
    given: dict[str, str], rest: str, trading: str
) -> None:
    settings = load(given)
    assert (settings.resolved_rest_url(), settings.resolved_trading_url()) == (rest, trading)


def test_keys_alone_mean_iex() -> None:
    settings = load(KEYS)
    settings.require_runnable()
    assert settings.feed_name == "iex"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Settings().feed = "sip"  # type: ignore[misc]


# ---- what people paste


@pytest.mark.parametrize("end", ["", "/", "/v2", "/v2/", "/V2", "/v2//", "/v2/v2"])
@pytest.mark.parametrize("name", ["rest_url", "trading_url"])
def test_a_base_that_ends_in_v2_means_the_same(name: str, end: str) -> None:
    url = f"https://mirror.example/alpaca{end}"
    found = load_settings(None, {}, {f"MDSERVICE_{name.upper()}": url})
    assert getattr(found, name) == "https://mirror.example/alpaca"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REST_URL", "https://paper-api.alpaca.markets"),
        ("REST_URL", "https://API.alpaca.markets/v2"),
        ("REST_URL", "data.alpaca.markets"),
        ("TRADING_URL", "https://data.alpaca.markets/v2"),
        ("TRADING_URL", "paper-api.alpaca.markets"),
        ("FEED_URL", "wss://stream.data.alpaca.markets"),
        ("FEED_URL", "wss://stream.data.alpaca.markets/"),
        ("FEED_URL", "wss://stream.data.alpaca.markets/v2"),
        ("FEED_URL", "https://stream.data.alpaca.markets/v2/iex"),
        ("FEED_URL", "stream.data.alpaca.markets/v2/iex"),
        ("FEED_URL", "wss://stream.data.alpaca.markets/v1beta3/crypto/us"),
        ("FEED_URL", "wss://stream.data.alpaca.markets/v1beta1/news"),
        ("CRYPTO_URL", "wss://stream.data.alpaca.markets/v2/iex"),
        ("CRYPTO_URL", "wss://stream.data.sandbox.alpaca.markets/v1beta1/opra"),
        ("OPTIONS_URL", "wss://stream.data.alpaca.markets/v1beta3/crypto/us/"),
        ("NEWS_URL", "wss://stream.data.alpaca.markets/v2/sip"),
    ],
)
def test_an_address_of_another_kind_is_refused_at_once(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"MDSERVICE_{name}"):
        load_settings(None, {}, {f"MDSERVICE_{name}": value})


@pytest.mark.parametrize("around", ['"{}"', "'{}'", " {} ", "{}\n", "{}\r\n", '"{}"\r', '" {} "'])
def test_quotes_and_blanks_around_a_variable_are_taken_off(around: str) -> None:
    given = {
        "ALPACA_API_KEY": "PK1",
        "ALPACA_SECRET_KEY": "hidden",
        "MDSERVICE_API_TOKEN": "token",
        "MDSERVICE_SYMBOLS": "AAPL,MSFT",
        "MDSERVICE_REDIS_URL": "redis://db:6379",
        "MDSERVICE_FEED": "sip",
        "MDSERVICE_PRICE_TTL": "7",
        "MDSERVICE_POSITIONS": "https://desk.example/positions/",
    }
    quoted = {name: around.format(value) for name, value in given.items()}
    assert load_settings(None, {}, quoted) == load_settings(None, {}, given)


@pytest.mark.parametrize("value", ['"PK1', "PK1'", '"', "\"PK1'"])
def test_a_single_quotation_mark_of_a_key_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ALPACA_API_KEY.*quotation mark"):
        load_settings(None, {}, {"ALPACA_API_KEY": value})


def test_a_redis_url_needs_no_host() -> None:
    assert parse_url("redis://", "redis") == "redis://"


def test_the_webhook_is_a_url_and_a_secret() -> None:
    url = "https://hooks.example/T0/SECRET"
    settings = load({"MDSERVICE_ALERT_WEBHOOK": url})
    assert settings.alert_webhook == url
    assert url in settings.secret_values()
    assert load({"MDSERVICE_ALERT_WEBHOOK": f" {url}/ "}).alert_webhook == f"{url}/"
    assert "SECRET" not in repr(settings) + repr(settings.shown())
    for bad in ("hooks.example/SECRET", "ftp://x/SECRET", "https:///SECRET"):
        with pytest.raises(ConfigurationError) as raised:
            load({"MDSERVICE_ALERT_WEBHOOK": bad})
        assert "SECRET" not in str(raised.value)
        assert "alert_webhook" in str(raised.value)


@pytest.mark.parametrize(
    ("given", "stream"),
    [
        ({}, "wss://paper-api.alpaca.markets/stream"),
        ({"TRADING_URL": "https://api.alpaca.markets/v2"}, "wss://api.alpaca.markets/stream"),
        ({"TRADING_URL": "http://127.0.0.1:9/desk"}, "ws://127.0.0.1:9/desk/stream"),
        ({"TRADING_STREAM_URL": "ws://127.0.0.1:9/any"}, "ws://127.0.0.1:9/any"),
        (
            {"FEED": "simulator", "FEED_URL": "ws://127.0.0.1:9/v2/iex"},
            "ws://127.0.0.1:9/stream",
        ),
    ],
)
def test_the_trading_stream_is_beside_the_trading_api(given: dict[str, str], stream: str) -> None:
    settings = load({f"MDSERVICE_{name}": value for name, value in given.items()} | KEYS)
    assert settings.resolved_trading_stream_url() == stream


@pytest.mark.parametrize(
    ("environ", "served"),
    [
        ({}, "127.0.0.1:8001"),
        ({"MDSERVICE_FEED": "simulator", "MDSERVICE_REDIS_URL": "redis://x"}, "127.0.0.1:8001"),
        ({"MDSERVICE_HTTP": "127.0.0.1:9000"}, "127.0.0.1:9000"),
        ({"MDSERVICE_HTTP": "off"}, None),
        (KEYS, None),
        ({"MDSERVICE_FEED_URL": "ws://127.0.0.1:1/v2/iex", **KEYS}, None),
    ],
)
def test_only_the_embedded_simulator_serves_the_page_by_itself(
    environ: dict[str, str], served: str | None
) -> None:
    settings = load(environ)
    assert settings.http == served
    assert settings.http_is_default is (served == "127.0.0.1:8001")
    assert attrs.evolve(settings, symbols=("AAPL",)).http == served
