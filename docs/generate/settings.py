"""The reference of the settings, from the class that has them."""

from __future__ import annotations

from pathlib import Path

import attrs

from docs.generate.text import code, paragraph
from mdservice.settings import SETTINGS, Settings
from mdservice.settings.sources import SettingInfo

__all__ = ["settings"]


def settings() -> str:
    """Each setting with its variables, its flag, its default and its meaning."""
    return "\n\n".join(_setting(info) for info in SETTINGS)


def _setting(info: SettingInfo) -> str:
    flag = "none, since it is a secret" if info.secret else code(f"{info.flag} {info.metavar}")
    facts = (
        f"- Environment: {', '.join(map(code, info.environment))}",
        f"- Flag: {flag}",
        f"- Default: {_default(info)}",
    )
    return "\n\n".join((f"### `{info.name}`", paragraph(info.help), "\n".join(facts)))


def _default(info: SettingInfo) -> str:
    if info.default is not None:
        return info.default
    value = attrs.fields_dict(Settings)[info.name].default
    if isinstance(value, (str, int, float, Path)):
        return code(f"{value:g}" if isinstance(value, float) else str(value))
    if value in (None, ()):
        return "not set"
    if isinstance(value, tuple):
        return code(",".join(value))
    raise LookupError(f"say by shown_default what the default of {info.name} is")
