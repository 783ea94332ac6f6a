"""The command line: ``mdservice``, also ``python -m mdservice``.

Importing this module must stay fast, because a container runs ``mdservice health`` often. Each
command imports its modules when it runs.
"""

from __future__ import annotations

import errno
import gc
from pathlib import Path
from typing import Any

import click

from mdservice import __version__
from mdservice.cli.asking import health, status, subscribe, unsubscribe
from mdservice.cli.check import check
from mdservice.cli.journals import export, replay
from mdservice.cli.options import (
    FAILED,
    config_option,
    print_failure,
    report,
    use_json_lines,
    use_plain_lines,
)
from mdservice.cli.run import gateway, run, simulate
from mdservice.cli.watch.command import watch

__all__ = ["GC_THRESHOLD", "CommandGroup", "cli", "main"]

GC_THRESHOLD = (50_000, 20, 50)
"""Objects between two searches for cycles. Quotes and rows form none; searching every 700 objects
costs a third of the throughput, delays answers with ten thousand positions, and makes the start
slower by a tenth."""

_AS_JSON = "mdservice.as_json"

_EPILOG = """\b
Examples:
  mdservice run                          simulated prices: no account needed
  mdservice run --symbols AAPL,MSFT      with ALPACA_API_KEY and ALPACA_SECRET_KEY set
  mdservice subscribe NVDA               while it runs
  mdservice status                       how it is doing
  mdservice check                        what is wrong with the settings

\b
Settings come from mdservice.toml, the environment, then flags.
Exit codes: 0 fine, 1 failed, 2 usage (health: no answer), 78 configuration.
"""

LONG_RUNNING = frozenset({"run", "gateway", "simulate", "replay"})
"""Commands that log: with the format ``json`` they print only JSON objects."""


class CommandGroup(click.Group):
    """Turns every error of a command into lines on stderr and an exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command and its output format, which an error about a wrong flag needs too."""
        name, command, rest = super().resolve_command(ctx, args)
        use_plain_lines()
        ctx.meta[_AS_JSON] = name in LONG_RUNNING and use_json_lines(
            ctx,
            Path(file) if (file := _given(rest, "--config")) else ctx.params.get("config"),
            {"log_format": _given(rest, "--log-format")},
        )
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except (click.ClickException, click.Abort, KeyboardInterrupt) as exc:
            if not ctx.meta.get(_AS_JSON):
                raise  # click prints it.
            ctx.exit(_print_as_json(ctx, exc))
        except OSError as exc:
            if exc.errno == errno.EPIPE:
                raise  # click ends quietly when the reader of its output is gone.
            ctx.exit(report(exc))
        except Exception as exc:  # noqa: BLE001 - the last place where an error can be reported
            ctx.exit(report(exc))
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is None:
                raise
            if ctx.meta.get(_AS_JSON):
                ctx.exit(_print_as_json(ctx, group))
            raise click.Abort from group


def _given(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, found before the command line is parsed, since parsing may fail."""
    for index, argument in enumerate(arguments):
        if argument == flag:
            return next(iter(arguments[index + 1 :]), None)
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _print_as_json(ctx: click.Context, exc: BaseException) -> int:
    """Print the message that click would print as plain text; return the exit code."""
    if not isinstance(exc, click.ClickException):
        print_failure("interrupted")
        return FAILED
    print_failure(f"{exc.format_message()} See: {ctx.command_path} {ctx.invoked_subcommand} --help")
    return exc.exit_code


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's callback
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"mdservice {__version__}")
    ctx.exit()


@click.group(
    cls=CommandGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@config_option
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Alpaca's market data, held once and shared: prices in Redis, an event per quote."""
    ctx.obj = config


for _command in (
    *(run, health, status, subscribe, unsubscribe, watch, check, simulate, gateway),
    *(replay, export),
):
    cli.add_command(_command)


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit with its code."""
    gc.set_threshold(*GC_THRESHOLD)
    cli(prog_name="mdservice")
