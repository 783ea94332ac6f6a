"""The command that holds all others: its options, and what becomes of their errors."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click

from mdservice import __version__
from mdservice.cli.failures import report
from mdservice.cli.options import config_option

__all__ = ["CommandGroup", "cli"]

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


class CommandGroup(click.Group):
    """Turns every error of a command into lines on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except OSError as exc:
            if exc.errno == errno.EPIPE:
                raise  # click ends quietly when nobody reads its output any more.
            ctx.exit(report(exc))
        except Exception as exc:  # noqa: BLE001 - the last place where an error can be told
            ctx.exit(report(exc))
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is None:
                raise
            raise click.Abort from group


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
