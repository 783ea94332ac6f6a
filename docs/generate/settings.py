"""The reference of the settings, from the class that has them."""

from __future__ import annotations

from docs.generate.text import code, paragraph
from mdservice.settings import SETTINGS
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
        f"- Default: {info.default or 'not set'}",
    )
    return "\n\n".join((f"### `{info.name}`", paragraph(info.help), "\n".join(facts)))
