"""How the running service is doing, asked now and then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from mdservice.api_client import ask
from mdservice.errors import MDServiceError
from mdservice.logs import masked
from mdservice.model.symbol import EVERY_SYMBOL

__all__ = ["ServiceWatch"]

_EVERY_S: Final = 2.0
_TIMEOUT_S: Final = 3.0
_SUBSCRIPTIONS: Final = "/api/v1/market-data/subscriptions"


class ServiceWatch:
    """What the service at a socket says of itself; what it said last, while it says nothing.

    Args:
        socket: Its UNIX socket.
        subscriptions: Whether it is asked for these too.

    Attributes:
        status: As ``/status`` told it last; empty before the first answer.
        failure: Why the last try failed, or None.
        answered: Whether it has ever answered.
    """

    def __init__(self, socket: Path, *, subscriptions: bool) -> None:
        self.status: Mapping[str, Any] = {}
        self.failure: MDServiceError | None = None
        self.answered = False
        self._socket = socket
        self._ask_subscriptions = subscriptions
        self._subscribed: frozenset[str] | None = None

    @property
    def reason(self) -> str | None:
        """Why it does not answer, or None."""
        return None if self.failure is None else masked(str(self.failure))

    def asked_for(self, symbol: str) -> bool:
        """Whether somebody subscribed to the symbol, as far as is known."""
        known = self._subscribed
        return known is None or symbol in known or EVERY_SYMBOL in known

    async def refresh(self) -> None:
        """Ask once."""
        try:
            status, subscribed = await anyio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
        except MDServiceError as exc:
            self.failure = exc
        else:
            self.failure, self.answered = None, True
            self.status, self._subscribed = status, subscribed

    async def poll(self) -> None:
        """Ask until cancelled."""
        while True:
            await anyio.sleep(_EVERY_S)
            await self.refresh()

    def _ask(self) -> tuple[Mapping[str, Any], frozenset[str] | None]:
        answer = ask(self._socket, "GET", "/status", timeout_s=_TIMEOUT_S)
        if not answer.ok:
            raise MDServiceError(f"the service refused to tell its status: {answer.reason}")
        if not self._ask_subscriptions:
            return answer.content, None
        told = ask(self._socket, "GET", _SUBSCRIPTIONS, timeout_s=_TIMEOUT_S)
        symbols = told.content.get("symbols") if told.ok else None
        known = frozenset(map(str, symbols)) if isinstance(symbols, list) else None
        return answer.content, known
