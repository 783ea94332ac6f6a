"""The bearer token of the TCP listener."""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from mdservice.api.requests import App, Receive, Send, refuse

__all__ = ["OPEN_PATHS", "BearerGate"]

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
"""What a load balancer may ask without the token."""


class BearerGate:
    """An ASGI layer that lets only callers with the token reach the application.

    Over the UNIX socket, its file's mode is the gate, and this layer is not used.

    Args:
        app: The application.
        token: What has to stand in ``Authorization: Bearer <token>``.
    """

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, with 401 where the token is missing or wrong."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._allows(scope):
            await self._app(scope, receive, send)
            return
        detail = "a token is needed here: send the header 'Authorization: Bearer <token>'"
        challenge = {"WWW-Authenticate": 'Bearer realm="mdservice"'}
        answer = JSONResponse({"detail": detail}, 401, challenge)
        await refuse(answer, scope, receive, send)

    def _allows(self, scope: MutableMapping[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, credentials = given[0].partition(b" ")
        matches = secrets.compare_digest(credentials.strip(), self._token)
        return scheme.lower() == b"bearer" and matches
