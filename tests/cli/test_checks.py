"""The checks that need no server."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.cli.checks import (
    CheckResult,
    check_clock,
    check_history,
    check_positions,
    check_settings,
    check_socket,
    log_in,
    passed,
    skipped,
)
from mdservice.errors import ConfigurationError, FeedRefused, FeedUnavailable
from mdservice.feed.alpaca.error_codes import http_refusal, refusal
from mdservice.settings import Settings, load_settings

KEYS = {"api_key": "PKTEST", "secret_key": "secret-of-test"}


class ScriptedDriver:
    """A driver whose connection ends as the test says."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.error = error
        self.opened = 0
        self.closed = 0

    @asynccontextmanager
    async def connect(self, *_: Any) -> AsyncIterator[Any]:
        if self.error is not None:
            raise self.error
        self.opened += 1
        yield None
        self.closed += 1


async def test_a_login_that_works_is_ok_and_is_closed() -> None:
    first, second = ScriptedDriver("alpaca-py"), ScriptedDriver("websockets")
    result = await log_in("iex", [first, second])
    assert result == passed("feed", "iex: logged in by alpaca-py")
    assert (first.opened, first.closed, second.opened) == (1, 1, 0)


@pytest.mark.parametrize("error", [FeedUnavailable("no"), ConfigurationError("not installed")])
async def test_the_second_driver_is_tried_when_the_first_cannot(error: Exception) -> None:
    first = ScriptedDriver("alpaca-py", ExceptionGroup("", [error]))
    result = await log_in("iex", [first, ScriptedDriver("websockets")])
    assert result.outcome == "ok"
    assert f"logged in by websockets (alpaca-py: {error})" in result.detail


async def test_a_refusal_is_not_tried_with_another_driver() -> None:
    second = ScriptedDriver("websockets")
    result = await log_in("iex", [ScriptedDriver("alpaca-py", refusal(402, "auth failed")), second])
    assert result.outcome == "FAIL"
    assert result.configuration
    assert "ALPACA_API_KEY" in result.detail
    assert second.opened == 0


@pytest.mark.parametrize(
    ("error", "configuration"),
    [
        (refusal(409, ""), True),
        (refusal(411, ""), True),
        (http_refusal(401), True),
        (http_refusal(403), True),
        (http_refusal(503), False),
        (refusal(406, "connection limit exceeded"), False),
        (refusal(500, ""), False),
    ],
)
async def test_refusals_for_good_are_configuration(error: FeedRefused, configuration: bool) -> None:
    result = await log_in("iex", [ScriptedDriver("websockets", error)])
    assert (result.outcome, result.configuration) == ("FAIL", configuration)


async def test_406_points_at_a_running_service() -> None:
    result = await log_in("iex", [ScriptedDriver("websockets", refusal(406, ""))])
    assert "mdservice status" in result.advice


async def test_a_feed_out_of_reach_names_every_driver() -> None:
    drivers = [ScriptedDriver(name, FeedUnavailable("no route")) for name in ("a", "b")]
    result = await log_in("iex", drivers)
    assert result.outcome == "FAIL"
    assert not result.configuration
    assert result.detail == "a: no route; b: no route"
    assert "network" in result.advice


async def test_a_driver_that_is_not_there_is_configuration() -> None:
    result = await log_in("iex", [ScriptedDriver("alpaca-py", ConfigurationError("install it"))])
    assert result.configuration
    assert "install it" in result.detail


async def test_an_unforeseen_error_is_not_hidden() -> None:
    with pytest.raises(ExceptionGroup):
        await log_in("iex", [ScriptedDriver("a", ExceptionGroup("", [ZeroDivisionError()]))])


async def test_settings_show_where_they_come_from() -> None:
    assert "all are defaults: simulated prices" in (await check_settings(Settings())).detail
    settings = load_settings(None, {"feed": "sip"}, {"ALPACA_API_KEY": "HIDDENKEY"})
    detail = (await check_settings(settings)).detail
    assert "api_key (environment variable ALPACA_API_KEY), feed (flag --feed)" in detail
    assert "HIDDEN" not in detail


async def test_a_pair_without_its_slash_is_a_warning() -> None:
    result = await check_settings(load_settings(None, {"symbols": "AAPL,BTCUSD"}, {}))
    assert result.outcome == "warn"
    assert "BTC/USD" in str(result.advice)


async def test_a_socket_that_can_be_made_is_ok() -> None:
    result = await check_socket(Settings(socket=Path("x.sock")), None)
    assert result.outcome == "ok"
    assert not Path("x.sock").exists()


async def test_a_socket_without_a_folder_is_configuration() -> None:
    result = await check_socket(Settings(socket=Path("missing/x.sock")), None)
    assert (result.outcome, result.configuration) == ("FAIL", True)


async def test_a_running_service_is_reported() -> None:
    result = await check_socket(Settings(socket=Path("x.sock")), "running, iex connected")
    assert result.detail.endswith("x.sock: running, iex connected")


async def test_simulated_prices_ask_alpaca_nothing() -> None:
    for check in (check_history, check_clock, check_positions):
        assert (await check(Settings())).outcome == "skip"


async def test_the_test_feed_has_no_history() -> None:
    assert (await check_history(Settings(feed="test", **KEYS))).outcome == "skip"


async def test_no_positions_are_skipped() -> None:
    result = await check_positions(Settings(**KEYS))
    assert result == skipped("positions", "none are followed")


POSITION = {"symbol": "AAPL", "qty": "10", "avg_entry_price": "150.00"}


def file_settings(content: str | None) -> Settings:
    if content is not None:
        Path("positions.json").write_text(content)
    return Settings(feed="simulator", positions="file:positions.json")


@pytest.mark.parametrize("document", [[], [POSITION], {"positions": [POSITION]}])
async def test_a_file_of_positions_is_ok(document: Any) -> None:
    result = await check_positions(file_settings(json.dumps(document)))
    assert result.outcome == "ok"
    assert result.detail.startswith("positions.json holds ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no file"),
        ("", "no JSON"),
        ("{", "no JSON"),
        ("{}", "neither a list nor"),
        ("3", "neither a list nor"),
        ('{"positions": {}}', "neither a list nor"),
        ("[3]", "position 1 is no object"),
        ('[{"symbol": "AAPL"}]', "position 1 has no qty and no avg_entry_price"),
        (json.dumps([POSITION, {**POSITION, "qty": "x"}]), "position 2 has a value in qty"),
    ],
)
async def test_a_wrong_file_of_positions_is_reported(content: str | None, problem: str) -> None:
    result = await check_positions(file_settings(content))
    assert result.outcome == "FAIL"
    assert problem in result.detail


async def test_a_folder_is_no_file_of_positions() -> None:
    Path("positions.json").mkdir()
    result = await check_positions(file_settings(None))
    assert (result.outcome, "cannot be read" in result.detail) == ("FAIL", True)


async def test_a_pipe_is_no_file_of_positions_and_does_not_block() -> None:
    os.mkfifo("positions.json")
    with anyio.fail_after(2):
        result = await check_positions(file_settings(None))
    assert (result.outcome, "cannot be read" in result.detail) == ("FAIL", True)


async def test_a_home_folder_of_an_unknown_user_is_configuration() -> None:
    settings = Settings(feed="simulator", positions="file:~no-such-user-here/x.json")
    assert (await check_positions(settings)).configuration


async def test_alpacas_own_list_is_right() -> None:
    kinds = ("us_equity", "crypto", "crypto_perp")
    rows = [{**POSITION, "side": "long", "asset_class": kind} for kind in kinds]
    result = await check_positions(file_settings(json.dumps(rows)))
    assert result.outcome == "ok"
    assert result.detail.endswith("holds 3, 1 of them of an asset class without a feed")


def test_a_result_is_frozen() -> None:
    with pytest.raises(AttributeError):
        CheckResult("a", "ok", "b").name = "c"  # type: ignore[misc]
