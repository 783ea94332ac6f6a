"""The folder of the service's sockets, and whether it can be trusted."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mdservice.errors import ConfigurationError

__all__ = ["can_serve_at", "check_socket_folder", "default_socket", "prepare_socket_folder"]

_PRIVATE = 0o700


def default_socket(environ: Mapping[str, str] | None = None) -> Path:
    """``$XDG_RUNTIME_DIR/mdservice.sock``, else one in this user's folder in the temporary one.

    A ``$XDG_RUNTIME_DIR`` that this user cannot use is ignored: it is missing, not a folder, not
    writable, or belongs to another user, as after ``su``. This function creates nothing;
    :func:`prepare_socket_folder` does.
    """
    folder = Path((os.environ if environ is None else environ).get("XDG_RUNTIME_DIR", ""))
    # The XDG specification says to ignore a relative path.
    if folder.is_absolute() and _is_usable(folder):
        return folder / "mdservice.sock"
    return _own_folder() / "mdservice.sock"


def _is_usable(folder: Path) -> bool:
    try:
        found = folder.stat()
    except (OSError, ValueError):
        return False
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return own and os.access(folder, os.W_OK | os.X_OK)


def prepare_socket_folder(socket: Path) -> None:
    """Make sure that the socket can be created at its path, before serving.

    This user's folder in the temporary folder is created (mode 0700); any other has to exist.

    Raises:
        ConfigurationError: There is no such folder, it is not writable, or the folder in the
            temporary folder is accessible to other users.
    """
    folder = socket.parent
    if folder == _own_folder():
        try:
            folder.mkdir(mode=_PRIVATE, exist_ok=True)
        except OSError as exc:
            raise ConfigurationError(
                f"the folder {folder} cannot be created ({exc.strerror}): set MDSERVICE_SOCKET"
            ) from exc
    can_serve_at(socket)
    if not folder.is_dir():
        raise _missing(folder)


def can_serve_at(socket: Path) -> None:
    """Raise if :func:`prepare_socket_folder` would fail for this path; create nothing.

    Raises:
        ConfigurationError: As in :func:`prepare_socket_folder`.
    """
    check_socket_folder(socket)
    folder = socket.parent
    if not folder.is_dir():
        if folder != _own_folder():
            raise _missing(folder)
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"the socket's folder {folder} is not writable for this user: set MDSERVICE_SOCKET"
        )


def _missing(folder: Path) -> ConfigurationError:
    return ConfigurationError(
        f"the socket's folder {folder} does not exist: create it, or set MDSERVICE_SOCKET"
    )


def check_socket_folder(socket: Path) -> None:
    """Refuse a folder in the temporary folder that another user could have made.

    A missing folder, and one chosen by a setting, are accepted.

    Raises:
        ConfigurationError: It is not a folder, not this user's, or open to others.
    """
    folder = socket.parent
    if folder != _own_folder():
        return
    try:
        found = folder.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(found.st_mode):
        wrong = "is not a folder"
    elif found.st_uid != os.geteuid():
        wrong = "belongs to another user"
    elif stat.S_IMODE(found.st_mode) & ~_PRIVATE:
        wrong = f"is open to other users (mode {stat.S_IMODE(found.st_mode):04o}, not 0700)"
    else:
        return
    raise ConfigurationError(f"{folder} {wrong}: remove it, or set MDSERVICE_SOCKET")


def _own_folder() -> Path:
    return Path(tempfile.gettempdir(), f"mdservice-{os.geteuid()}").absolute()
