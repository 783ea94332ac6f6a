"""Settings from all of their sources: defaults < ``mdservice.toml`` < environment < flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdservice.runtime_folder import default_socket
from mdservice.settings import SETTINGS, Settings
from mdservice.settings_fields import bad_setting
from mdservice.settings_sources import collect

__all__ = ["load_settings"]


def load_settings(
    config: Path | None, flags: Mapping[str, str], environ: Mapping[str, str]
) -> Settings:
    """Settings from all of their sources.

    Args:
        config: The file; None for ``mdservice.toml`` in the working directory, where there is.
        flags: What the command line gives, by the setting's name.
        environ: The environment, usually ``os.environ``.

    Raises:
        ConfigurationError: An unknown name, a file that cannot be read, or a bad value; the
            text names the setting and the variable, file or flag. Values of secrets are not
            quoted.
    """
    given = collect(SETTINGS, config, flags, environ)
    found: dict[str, Any] = {"socket": default_socket(environ)}
    parsers = {info.name: info.parse for info in SETTINGS}
    for name, item in given.items():
        try:
            found[name] = parsers[name](item.value)
        except ValueError as exc:
            raise bad_setting(name, item.source, exc) from None
    sources = {name: item.source for name, item in given.items()}
    return Settings(**found, sources=sources)
