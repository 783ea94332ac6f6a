"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import inspect

import click

from docs.generate.text import code, fence, paragraph, table
from mdservice.cli import cli
from mdservice.settings import SETTINGS

__all__ = ["commands"]

_FLAGS = frozenset(info.name for info in SETTINGS)


def commands() -> str:
    """Each command with its arguments, its options and examples."""
    return "\n\n".join(_command(name, command) for name, command in cli.commands.items())


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"mdservice {name}")
    parts = [f"### `mdservice {name}`"]
    parts += [paragraph(part) for part in inspect.cleandoc(command.help or "").split("\n\n")]
    usage = " ".join(command.collect_usage_pieces(context))
    parts.append(fence("text", f"mdservice {name} {usage}"))
    options = [p for p in command.params if isinstance(p, click.Option)]
    rows = [_row(option, context) for option in options if option.name not in _FLAGS]
    parts.append(table(("option", "meaning"), [*rows, *_settings_row(options)]))
    if command.epilog:
        title, _, lines = command.epilog.replace("\b\n", "").strip().partition("\n")
        examples, _, after = lines.partition("\n\n")
        parts += [title, fence("text", inspect.cleandoc(examples))]
        parts += [paragraph(after)] if after else []
    return "\n\n".join(parts)


def _row(option: click.Option, context: click.Context) -> tuple[str, str]:
    record = option.get_help_record(context)
    if record is None:
        raise LookupError(f"{option.name} is hidden")
    return code(record[0]), record[1]


def _settings_row(options: list[click.Option]) -> list[tuple[str, str]]:
    """The flags of settings, which have a page of their own."""
    flags = [option.opts[0] for option in options if option.name in _FLAGS]
    public = [info.flag for info in SETTINGS if not info.secret]
    if not flags:
        return []
    if flags == public:
        return [("`--SETTING VALUE`", "Every [setting](settings.md) but the secrets.")]
    return [(code(flag), f"As the [setting](settings.md#{flag[2:]}).") for flag in flags]
