"""What a connection needs of the simulator that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from websockets.http11 import Request

from mdservice.simulator.account import Silence
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.http import HttpAnswer
from mdservice.simulator.session import Reply, Session

__all__ = ["Venue"]


class Venue(Protocol):
    """The simulator, seen from one connection; ``number`` is that connection's."""

    config: SimulatorConfig

    def answer_http(self, request: Request, body: bytes) -> HttpAnswer | None:
        """Answer a request that asks for no upgrade; None for one that may be upgraded."""
        ...

    def refuse_upgrade_now(self) -> int | Silence | None:
        """The HTTP status planned for this upgrade, silence, or None to accept it."""
        ...

    def open_session(self, number: int, request: Request) -> tuple[Session, Reply]:
        """Begin the session of an upgraded connection."""
        ...

    def message_came(self, number: int, message: Mapping[str, Any] | None) -> None:
        """A client's message, before it is answered."""
        ...

    def subscriptions_changed(self) -> None:
        """A client has changed its quotes' subscriptions."""
        ...

    def notify(self) -> None:
        """Something about a connection may have changed."""
        ...
