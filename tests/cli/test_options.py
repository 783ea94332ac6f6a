"""Options, usage, and what becomes of errors."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mdservice import __version__
from mdservice.cli import CommandGroup, cli
from mdservice.cli.options import causes, report
from mdservice.errors import ConfigurationError, FeedRefused, SocketInUse
from mdservice.observability.logging import hide_secrets
from mdservice.settings import SETTINGS

COMMANDS = [
    "run",
    "health",
    "status",
    "subscribe",
    "unsubscribe",
    "check",
    "simulate",
    "gateway",
    "watch",
    "replay",
    "export",
]
WITH_ARGUMENT = {"subscribe": ["AAPL"], "unsubscribe": ["AAPL"]}
WITHOUT_SETTINGS = {"simulate", "replay", "export"}
WITH_SETTINGS = [command for command in COMMANDS if command not in WITHOUT_SETTINGS]


def test_every_command_is_listed(invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert set(cli.commands) == set(COMMANDS)
    for command in COMMANDS:
        assert f"\n  {command} " in result.output
    assert "Examples:" in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(invoke, command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"mdservice {command}" in result.output.split("Example")[1]
    assert "--config FILE" in result.output


@pytest.mark.parametrize("command", ["run", "check", "watch"])
def test_every_setting_but_secrets_has_a_flag(invoke, command: str) -> None:
    output = invoke(command, "--help").output
    for info in SETTINGS:
        assert (f"{info.flag} {info.metavar}" in output) is not info.secret
    assert "key KEY" not in output.lower()


def test_the_help_of_a_flag_has_its_variable_and_its_default(invoke) -> None:
    output = " ".join(invoke("run", "--help").output.split())
    assert "[MDSERVICE_PRICE_TTL; default: 300]" in output
    assert "[MDSERVICE_RENEW_PRICES; default: on]" in output
    assert "[MDSERVICE_CHANNELS; default: quotes]" in output
    assert "[MDSERVICE_SYMBOLS]" in output


def test_version(invoke) -> None:
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, f"mdservice {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run", "--api-key", "x"],
        ["run", "--secret-key=x"],
        ["check", "--api-token", "x"],
        ["status", "--feed", "iex"],
        ["subscribe"],
        ["subscribe", "MS FT"],
        ["watch", "MS FT"],
        ["unsubscribe", ",", "--socket", "x.sock"],
        ["simulate", "--port", "70000"],
        ["simulate", "--rate", "-1"],
        ["simulate", "--trades", "0"],
    ],
)
def test_wrong_usage_ends_with_2(invoke, arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("command", WITH_SETTINGS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_config_goes_before_or_after_the_commands_name(
    invoke, config: Path, command: str, place: str
) -> None:
    option, rest = ["--config", str(config)], WITH_ARGUMENT.get(command, [])
    words = [*option, command] if place == "before" else [command, *option]
    result = invoke(*words, *rest, MDSERVICE_LOG_FORMAT="console")
    assert result.exit_code == 78
    assert result.stderr == (
        "mdservice: setting price_ttl (file other.toml): 0 is not between 1 and 315360000\n"
    )


def test_config_after_the_name_wins(invoke, config: Path) -> None:
    result = invoke("--config", "missing.toml", "health", "--config", str(config))
    assert "other.toml" in result.stderr


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_a_bad_setting_ends_every_command_with_78(invoke, command: str) -> None:
    result = invoke(command, *WITH_ARGUMENT.get(command, []), MDSERVICE_BACKLOG="9999")
    assert result.exit_code == 78
    assert "setting backlog (environment variable MDSERVICE_BACKLOG)" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_bad_flag_ends_with_78(invoke, command: str) -> None:
    result = invoke(command, "--feed", "otc")
    assert result.exit_code == 78
    assert "setting feed (flag --feed): 'otc' is not one of" in result.stderr


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_missing_key_ends_with_78_and_says_where_to_set_it(invoke, command: str) -> None:
    result = invoke(command, "--feed", "iex", ALPACA_API_KEY="PKHIDDEN0001")
    assert result.exit_code == 78
    assert "secret_key is missing" in result.stderr
    assert "ALPACA_SECRET_KEY" in result.stderr
    assert "HIDDEN" not in result.output


@pytest.mark.parametrize("command", ["status", "subscribe", "unsubscribe", "watch"])
def test_commands_that_ask_need_no_key_but_a_service(invoke, command: str) -> None:
    result = invoke(command, *WITH_ARGUMENT.get(command, []), MDSERVICE_FEED="sip")
    assert result.exit_code == 1
    assert "no service answers at" in result.stderr
    assert "`mdservice run`" in result.stderr
    assert result.stderr.count("\n") == 1


def test_health_without_a_service_is_2(invoke) -> None:
    result = invoke("health", "--socket", "here.sock")
    assert result.exit_code == 2
    assert result.stdout.startswith("no answer: no service answers at ")
    assert "here.sock" in result.stdout
    assert result.stdout.count("\n") == 1


# Errors


def failing(error: BaseException) -> Result:
    @click.group(cls=CommandGroup)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(group, ["fail"])


def test_known_errors_are_a_line_each_however_deep() -> None:
    error = ExceptionGroup(
        "", [SocketInUse("one\ntwo"), ExceptionGroup("", [SocketInUse("three")])]
    )
    result = failing(error)
    assert (result.exit_code, result.stderr) == (1, "mdservice: one two\nmdservice: three\n")


@pytest.mark.parametrize("error", [ConfigurationError("fix it"), FeedRefused("fix it", code=402)])
def test_what_only_a_person_can_fix_is_78(error: Exception) -> None:
    result = failing(ExceptionGroup("", [error, SocketInUse("also")]))
    assert result.exit_code == 78
    assert "mdservice: fix it\n" in result.stderr


def test_an_error_reported_twice_is_one_line() -> None:
    error = ConfigurationError("fix it")
    assert failing(ExceptionGroup("", [error, error])).stderr == "mdservice: fix it\n"


def test_an_unforeseen_error_is_logged_with_its_traceback_and_without_secrets() -> None:
    hide_secrets(["hidden-secret"])
    result = failing(ExceptionGroup("", [ZeroDivisionError("hidden-secret"), SocketInUse("x")]))
    assert result.exit_code == 1
    assert "unexpected_error" in result.stderr
    assert "ZeroDivisionError: ***" in result.stderr
    assert "mdservice: x\n" in result.stderr
    assert "hidden" not in result.output


def test_secrets_in_a_known_error_are_masked() -> None:
    hide_secrets(["hidden-secret"])
    assert failing(SocketInUse("at hidden-secret")).stderr == "mdservice: at ***\n"


def test_ctrl_c_within_a_group_of_errors_is_an_abort() -> None:
    result = failing(BaseExceptionGroup("", [KeyboardInterrupt()]))
    assert (result.exit_code, result.stderr.strip()) == (1, "Aborted!")


def test_an_error_without_words_has_its_name() -> None:
    assert failing(SocketInUse()).stderr == "mdservice: SocketInUse\n"


def test_a_foreign_end_of_the_process_goes_on() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        failing(BaseExceptionGroup("", [SystemExit(9)]))
    assert caught.value.subgroup(SystemExit) is not None


def test_causes_are_the_leaves() -> None:
    one, two = ValueError(), KeyError()
    assert list(causes(ExceptionGroup("", [one, ExceptionGroup("", [two])]))) == [one, two]


def test_report_of_one_error() -> None:
    assert report(SocketInUse("x")) == 1
    assert report(ConfigurationError("x")) == 78
