"""What is logged, in which form, and what is kept out of it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from mdservice.observability import logging as logs
from mdservice.observability.logging import configure_logging, get_logger, hide_secrets
from mdservice.observability.masking import Masker


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(logs._Output, "emit", None)
    monkeypatch.setattr(logs._Output, "threshold", logging.NOTSET)
    monkeypatch.setattr(logs, "_masker", Masker())
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# Form


def test_json_is_one_object_a_line_with_a_utc_time() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    get_logger("mdservice.feed").bind(driver="raw").warning("feed_disconnected", reason="a\nb")
    (event,) = json_lines(stream)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "feed_disconnected",
        "level": "warning",
        "logger": "mdservice.feed",
        "driver": "raw",
        "reason": "a\nb",
    }


def test_console_lines_are_plain_without_a_terminal() -> None:
    stream = io.StringIO()
    configure_logging("console", stream=stream)
    get_logger("x").info("feed_connected", feed="iex")
    assert "feed_connected" in stream.getvalue()
    assert "feed=iex" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_console_lines_have_colours_on_a_terminal() -> None:
    stream = Terminal()
    configure_logging("console", stream=stream)
    get_logger("x").info("feed_connected")
    assert "\x1b" in stream.getvalue()


HOSTILE = (
    "a\nb",
    "a\r\nevent=login",
    "\x1b[2J\x1b[31mred",
    "\x00\x07\x08",
    "\u2028line",
    "\x85line",
    "\x9b31m",
    "\x7f\u202e\ud800",
)
"""What a peer may put into a name or a reason."""
NEVER = "\r\x00\x07\x08\x7f\x85\x9b\u2028\u202e\ud800"
"""What no line has: carriage return, bell, new line of another kind, the start of a sequence …"""


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_no_value_begins_a_line_or_steers_a_terminal(text: str, stream: type[io.StringIO]) -> None:
    plain, hostile = stream(), stream()
    for written, value in ((plain, "x y"), (hostile, text)):
        configure_logging("console", stream=written)
        get_logger("x").warning("relay_client_refused", reason=value)
        logging.getLogger("other").warning("from %s", value)
    assert len(hostile.getvalue().splitlines()) == len(plain.getvalue().splitlines())
    for sign in NEVER:
        assert sign not in hostile.getvalue()
    assert hostile.getvalue().count("\x1b") == plain.getvalue().count("\x1b")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_begins_a_line_of_json(text: str) -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    get_logger("x").warning("relay_client_refused", reason=text)
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["reason"] == text
    assert not set(NEVER + "\x1b") & set(line)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", ["console", "json"])
def test_the_message_of_an_exception_begins_no_line_that_looks_like_an_event(
    form: Any, text: str
) -> None:
    stream = io.StringIO()
    configure_logging(form, stream=stream)
    try:
        raise ValueError(text)
    except ValueError:
        get_logger("x").exception("relay_client_failed")
    first, *others = stream.getvalue().splitlines()
    assert not set(NEVER + "\x1b") & set(stream.getvalue())
    if form == "json":
        assert json.loads(first)["exception"].endswith(f"ValueError: {text}")
    assert all(line.startswith("  ") for line in others)
    assert bool(others) is (form == "console")


@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize("value", [["a\nb"], {"a\nb": "c\x1b[m"}, ValueError("a\nb"), b"a\n\x1b"])
def test_a_value_of_another_type_begins_no_line_either(form: Any, value: object) -> None:
    stream = io.StringIO()
    configure_logging(form, stream=stream)
    get_logger("x").info("relay_client_refused", reason=value)
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_stderr_is_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    get_logger("x").info("up")
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "up"


def test_levels_below_the_chosen_one_are_left_out() -> None:
    stream = io.StringIO()
    configure_logging("json", "warning", stream=stream)
    log = get_logger("x")
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    log.critical("c")
    assert [event["level"] for event in json_lines(stream)] == ["warning", "error", "critical"]


def test_an_exception_comes_with_its_traceback() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError as exc:
        get_logger("x").exception("actor_failed")
        kept = exc
    get_logger("y").error("again", exc_info=kept)
    for event in json_lines(stream):
        assert event["level"] == "error"
        assert "ValueError: broken" in event["exception"]
        assert "Traceback" in event["exception"]


def test_a_stream_that_is_gone_does_not_raise() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    stream.close()
    get_logger("x").error("nobody_reads_this")


# Secrets


SECRETS = ("PKHIDDEN0001", "hid/den+secret==", 'quo"ted\\secret')


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_masked_wherever_they_stand(form: Any) -> None:
    stream = io.StringIO()
    configure_logging(form, secrets=SECRETS, stream=stream)
    log = get_logger("x")
    for secret in SECRETS:
        told = f"login_with_{secret}"
        log.info(told, url=f"wss://u:{secret}@host/", number=7)
        log.info("nested", headers={"key": [secret, (secret,), {secret: secret.encode()}]})
        log.info("object", error=ValueError(secret), shown=[{"deep": ValueError(secret)}])
        try:
            raise RuntimeError(f"refused {secret}") from ValueError(secret)
        except RuntimeError:
            log.exception("failed")
        logging.getLogger("alpaca").warning("auth with %s", secret)
        logging.getLogger("alpaca").error("auth", exc_info=RuntimeError(secret))
    text = stream.getvalue()
    assert text.count("***") >= 10 * len(SECRETS)
    for part in ("HIDDEN", "den+sec", "ted\\", "secret=="):
        assert part not in text


def test_secrets_can_be_added_later() -> None:
    stream = io.StringIO()
    configure_logging("json", secrets=["first-secret"], stream=stream)
    hide_secrets(["second-secret", ""])
    get_logger("x").info("both", a="first-secret", b="second-secret")
    (event,) = json_lines(stream)
    assert (event["a"], event["b"]) == ("***", "***")


def test_floods_are_limited_in_the_log() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    for _ in range(100):
        get_logger("x").warning("quote_refused", symbol="AAPL")
        logging.getLogger("alpaca").warning("slow")
    events = [event["event"] for event in json_lines(stream)]
    assert events.count("quote_refused") == 5
    assert events.count("third_party_log") == 5


# Others' logs


def test_third_parties_are_heard_from_warning_up() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    third = logging.getLogger("hypercorn.error")
    third.info("listening")
    third.warning("odd %d", 3)
    third.log(35, "between")
    third.critical("bad")
    third.warning("two %d values", 1, 2)
    events = json_lines(stream)
    assert [(event["level"], event["message"]) for event in events] == [
        ("warning", "odd 3"),
        ("warning", "between"),
        ("critical", "bad"),
        ("warning", "two %d values"),
    ]
    assert {event["event"] for event in events} == {"third_party_log"}
    assert {event["logger"] for event in events} == {"hypercorn.error"}


def test_handlers_of_before_are_replaced() -> None:
    old = io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler(old))
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    logging.getLogger("alpaca").error("once")
    assert old.getvalue() == ""
    assert len(json_lines(stream)) == 1


def test_pythons_warnings_are_logged() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old way", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    (event,) = json_lines(stream)
    assert event["logger"] == "py.warnings"
    assert "old way" in event["message"]


# Embedded in another program


def test_unconfigured_events_go_to_the_hosts_logging(caplog: pytest.LogCaptureFixture) -> None:
    hide_secrets(["hidden-secret"])
    log = get_logger("mdservice.feed").bind(feed="iex")
    with caplog.at_level(logging.INFO, logger="mdservice.feed"):
        log.debug("not_wanted")
        log.info("feed_connected", url="wss://hidden-secret@x")
        try:
            raise ValueError("hidden-secret")
        except ValueError:
            log.exception("feed_lost")
        log.error("given", exc_info=KeyError("k"))
    first, second, third = caplog.records
    assert first.name == "mdservice.feed"
    assert first.getMessage() == "feed_connected feed='iex' url='wss://***@x'"
    assert second.levelname == "ERROR"
    assert "ValueError: ***" in second.getMessage()
    assert "KeyError" in third.getMessage()
