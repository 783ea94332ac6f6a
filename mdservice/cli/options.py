"""Options that commands share, and the settings that follow from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from mdservice.logs import hide_secrets
from mdservice.settings import SETTINGS, Settings
from mdservice.settings_load import load_settings

__all__ = ["config_option", "settings_from", "settings_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def config_option(command: _Command) -> _Command:
    """Give the command ``--config FILE``, which goes before or after a command's name."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Settings under [mdservice], in the place of ./mdservice.toml.",
    )(command)


def settings_options(*names: str) -> Callable[[_Command], _Command]:
    """Give the command ``--config`` and the flags of these settings, or of all of them."""

    def add(command: _Command) -> _Command:
        for info in reversed(SETTINGS):
            if info.secret or (names and info.name not in names):
                continue
            command = click.option(
                info.flag,
                info.name,
                metavar=info.metavar,
                help=f"{info.help} [{info.environment[0]}]",
            )(command)
        return config_option(command)

    return add


def settings_from(
    ctx: click.Context, config: Path | None, flags: Mapping[str, str | None]
) -> Settings:
    """The settings for a command, from the file, the environment and its flags.

    Raises:
        ConfigurationError: See :func:`mdservice.load_settings`.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    settings = load_settings(config or ctx.find_root().obj, given, os.environ)
    hide_secrets(settings.secret_values())
    return settings
