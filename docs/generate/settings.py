"""The reference of the settings, from the class that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

from docs.generate.text import code, paragraph
from mdservice.settings import SETTINGS, Settings
from mdservice.settings.sources import SettingInfo

__all__ = ["settings"]

_MADE: Final = {
    "socket": "`$XDG_RUNTIME_DIR/mdservice.sock`; without that folder one in the temporary folder",
    "log_format": "`console` on a terminal, else `json`",
}
"""Defaults that depend on where the program runs."""


def settings() -> str:
    """Each setting with its variables, its flag, its default and its meaning."""
    return "\n\n".join(_setting(info) for info in SETTINGS)


def _setting(info: SettingInfo) -> str:
    flag = "none, since it is a secret" if info.secret else code(f"{info.flag} {info.metavar}")
    facts = (
        f"- Environment: {', '.join(map(code, info.environment))}",
        f"- Flag: {flag}",
        f"- Default: {_default(info.name)}",
    )
    return "\n\n".join((f"### `{info.name}`", paragraph(info.help), "\n".join(facts)))


def _default(name: str) -> str:
    value = attrs.fields_dict(Settings)[name].default
    if name in _MADE:
        return _MADE[name]
    if isinstance(value, (str, int, float, Path)):
        return code(f"{value:g}" if isinstance(value, float) else str(value))
    if value in (None, ()):
        return "not set"
    raise LookupError(f"say in {Path(__file__).name} what the default of {name} is")
