"""Asking a running service over its UNIX socket.

It uses only the standard library, since an HTTP client would take longer to import than the whole
request.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mdservice.errors import MDServiceError
from mdservice.runtime.runtime_dir import check_socket_folder

__all__ = ["Answer", "NoAnswer", "ask", "fetch"]

_MOST_BYTES = 16 * 1024 * 1024
_OK = 200


class NoAnswer(MDServiceError):
    """No service answers at the socket."""


@attrs.frozen
class Answer:
    """The answer of the service.

    Attributes:
        status: The HTTP status.
        content: The JSON object.
    """

    status: int
    content: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return self.status == _OK

    @property
    def reason(self) -> str:
        """Why it failed: FastAPI's ``detail``."""
        detail = self.content.get("detail", f"HTTP {self.status}")
        return detail if isinstance(detail, str) else json.dumps(detail)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    path: Path,
    method: str,
    call: str,
    content: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 5.0,
) -> Answer:
    """One call of the HTTP API, whose answer is a JSON object.

    Args:
        path: The service's socket.
        method: ``GET`` or ``POST``.
        call: ``/status``.
        content: The body, sent as JSON.
        timeout_s: How long each wait for the service may take.

    Raises:
        NoAnswer: No service listens, it does not answer in time, or the answer is not the API's.
        ConfigurationError: The socket's folder cannot be trusted.
    """
    status, data = fetch(path, method, call, content, timeout_s=timeout_s)
    return Answer(status, _decoded(path, data))


def fetch(
    path: Path,
    method: str,
    call: str,
    content: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 5.0,
) -> tuple[int, bytes]:
    """One call of the HTTP API: the HTTP status and the body as it came; see :func:`ask`."""
    check_socket_folder(path)
    connection = _UnixConnection(path, timeout_s)
    body = None if content is None else json.dumps(content)
    headers = {"Content-Type": "application/json"} if body else {}
    try:
        connection.request(method, call, body, headers)
        response = connection.getresponse()
        return response.status, response.read(_MOST_BYTES)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as exc:
        raise NoAnswer(
            f"no service answers at {path}; start one with `mdservice run`, or name its socket "
            "with --socket"
        ) from exc
    except PermissionError as exc:
        raise NoAnswer(f"the socket {path} is another user's: run this as that user") from exc
    except TimeoutError as exc:
        raise NoAnswer(f"the service at {path} does not answer within {timeout_s:g} s") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise NoAnswer(f"the service at {path} broke the connection off ({exc})") from exc
    finally:
        connection.close()


def _decoded(path: Path, data: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise NoAnswer(f"what answers at {path} is not mdservice; name its socket with --socket")
    return content
