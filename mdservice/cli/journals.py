"""The commands about a journal: ``replay`` and ``export``."""

from __future__ import annotations

import itertools
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdservice.cli.options import announce, config_option, run_async, use_json_lines
from mdservice.observability.logging import configure_logging

if TYPE_CHECKING:
    from mdservice.journal.replay import Journal, Replay

__all__ = ["Moment", "export", "replay"]

_REPLAY_EPILOG = """\b
Example, in two terminals:
  mdservice replay journal --speed 60 --port 8771
  MDSERVICE_FEED=simulator MDSERVICE_FEED_URL=ws://127.0.0.1:8771/v2/iex \\
    mdservice run --symbols AAPL

\b
A TIME is UTC unless it says otherwise: 2026-11-27T14:30, 2026-11-27T14:30:00.5-05:00.
"""
_EXPORT_EPILOG = """\b
Examples:
  mdservice export journal --out day.parquet
  mdservice export journal --out trades.parquet --channel trades --symbols AAPL,MSFT
  duckdb -c "SELECT symbol, count(*) FROM 'trades.parquet' GROUP BY symbol"
"""
_PERIOD_S = 0.5
_LOGGED_TURNS = 10
_BAR = 30
_SECOND_NS = 1_000_000_000
_FASTEST = 1e6


class Moment(click.ParamType[int]):
    """A time on the command line, as UTC nanoseconds."""

    name = "TIME"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse ISO 8601; without an offset it is UTC."""
        if isinstance(value, int):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time, such as 2026-11-27T14:30", param, ctx)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        whole = int(moment.replace(microsecond=0).timestamp())
        return whole * _SECOND_NS + moment.microsecond * 1_000


class _Speed(click.ParamType[float]):
    name = "N|max"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if value == "max":
            return float("inf")
        try:
            speed = float(str(value))
        except ValueError:
            speed = 0.0
        if not 0 < speed <= _FASTEST:
            self.fail(f"{value!r} is neither a number above 0 nor max", param, ctx)
        return speed


@click.command(epilog=_REPLAY_EPILOG, short_help="Serve a recorded journal as Alpaca would.")
@click.argument("folders", metavar="DIR…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--speed",
    type=_Speed(),
    metavar="N|max",
    default="1",
    show_default=True,
    help="How many times faster than recorded; max: as fast as it is read.",
)
@click.option("--from", "from_ns", type=Moment(), help="Begin here.")
@click.option("--to", "to_ns", type=Moment(), help="End before this time.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=0, help="The port; by default a free one."
)
@config_option
@click.pass_context
def replay(
    ctx: click.Context,
    /,
    folders: tuple[Path, ...],
    speed: float,
    from_ns: int | None,
    to_ns: int | None,
    host: str,
    port: int,
    config: Path | None,
) -> None:
    """Serve journals through Alpaca's protocol, several in turn.

    Each connection gets what its feed has brought, from the start, once it has subscribed what was
    recorded, or one second after its last request. Any key and secret are accepted. REST on the
    same port has no records.
    """
    as_json = use_json_lines(ctx, config)
    if as_json:
        configure_logging("json")
    from mdservice.journal.replay import open_journal

    journal = open_journal(folders, from_ns, to_ns)
    serve = partial(_replay, journal, speed, host, port, as_json=as_json)
    run_async(serve)


@click.command(epilog=_EXPORT_EPILOG, short_help="Turn a recorded journal into Parquet.")
@click.argument("folders", metavar="DIR…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.parquet",
    help="The file to write; an existing one is replaced.",
)
@click.option(
    "--channel",
    "chosen",
    metavar="NAME,NAME",
    help="Only these, in Alpaca's names; by default all.",
)
@click.option("--symbols", "of", metavar="SYM,SYM", help="Only these; by default all.")
@click.option("--from", "from_ns", type=Moment(), help="Begin here.")
@click.option("--to", "to_ns", type=Moment(), help="End before this time.")
@config_option
@click.pass_context
def export(
    ctx: click.Context,
    /,
    folders: tuple[Path, ...],
    out: Path,
    chosen: str | None,
    of: str | None,
    from_ns: int | None,
    to_ns: int | None,
    config: Path | None,
) -> None:
    """Turn journals into a Parquet file: one row for each record, every field as it was sent.

    It needs pyarrow: pip install 'mdservice[export]'.
    """
    use_json_lines(ctx, config)
    from mdservice.journal.export import CHANNELS
    from mdservice.journal.export import export as write
    from mdservice.journal.replay import open_journal
    from mdservice.model.symbol import parse_symbols

    journal = open_journal(folders, from_ns, to_ns)
    terminal = sys.stderr.isatty()
    length_ns = max(1, journal.last_ns - journal.first_ns)

    def progress(ns: int) -> None:
        if terminal:
            share = min(1.0, (ns - journal.first_ns) / length_ns)
            click.echo(f"\r{share:4.0%}, {_text(ns)}", nl=False, err=True)

    done = write(
        journal,
        out,
        channels=CHANNELS if chosen is None else _listed(chosen),
        symbols=parse_symbols(_listed(of or "")),
        progress=progress,
    )
    unreadable = f", {done.unreadable:,} messages could not be read" if done.unreadable else ""
    if terminal:
        click.echo("\r", nl=False, err=True)
    click.echo(f"{done.rows:,} rows in {out}{unreadable}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


async def _replay(journal: Journal, speed: float, host: str, port: int, *, as_json: bool) -> None:
    import anyio

    from mdservice.journal.replay import open_replay
    from mdservice.runtime.stop_signals import stop_on_signal

    async with anyio.create_task_group() as tasks:
        running = anyio.CancelScope()
        await tasks.start(stop_on_signal, running)
        async with open_replay(journal, speed=speed, host=host, port=port) as served:
            announce(
                f"replaying {_text(journal.first_ns)} to {_text(journal.last_ns)} at {served.url}"
            )
            announce(f"to use it: {_command(journal, served)}")
            with running:
                await _show_progress(served, as_json=as_json)
        tasks.cancel_scope.cancel()
    announce("stopped")


def _text(ns: int) -> str:
    return datetime.fromtimestamp(ns // _SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _command(journal: Journal, served: Replay) -> str:
    """How to run the service so that it wants all that was recorded."""
    wanted = {topic for name, some in journal.topics.items() if name != "news" for topic in some}
    news = sorted(topic.symbol for topic in journal.topics.get("news", ()))
    symbols = sorted({topic.symbol for topic in wanted})
    channels = sorted({topic.channel for topic in wanted})
    flags = {"symbols": symbols, "channels": channels, "news": news}
    shown = " ".join(f"--{name} '{','.join(some)}'" for name, some in flags.items() if some)
    return (
        f"MDSERVICE_FEED=simulator MDSERVICE_FEED_URL={served.url} mdservice run {shown}".rstrip()
    )


async def _show_progress(served: Replay, *, as_json: bool) -> None:
    """Show how far each client is; one line when it has everything."""
    import anyio

    terminal = sys.stdout.isatty() and not as_json
    told: set[int] = set()
    for turn in itertools.count(1):
        await anyio.sleep(_PERIOD_S)
        for number, player in enumerate(served.players):
            if player.ended and number not in told:
                told.add(number)
                line = f"{player.feed.name}: all of {player.messages:,} messages sent"
                announce(f"\r{line:<70}" if terminal else line)
        if terminal or not turn % _LOGGED_TURNS:
            for player in served.players:
                if not player.ended and player.error is None:
                    _show(player, terminal=terminal)


def _show(player: Any, *, terminal: bool) -> None:
    done = int(player.share * _BAR)
    place = f"{player.share:4.0%}, {_text(player.at_ns)}, {player.messages:,} messages"
    if terminal:
        bar = "█" * done + "░" * (_BAR - done)
        click.echo(f"\r{player.feed.name:<7} {bar} {place}", nl=False)
    else:
        announce(f"{player.feed.name}: {place}")
