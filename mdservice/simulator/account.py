"""What Alpaca knows of an account: its keys, its connection slots, and the refusals to come.

Pure: the time is an argument.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, Literal

import attrs

__all__ = ["SILENCE", "Account", "Refusals", "Silence", "When"]

When = Literal["upgrade", "connect", "auth", "subscribe", "unsubscribe"]
"""The moments of a connection at which the server answers."""

_MOST_PLANNED = 10_000


class Silence(Enum):
    """The answer that is none."""

    SILENCE = "silence"


SILENCE: Final = Silence.SILENCE
"""In the place of a code: the server accepts and never answers."""


@attrs.define
class Account:
    """Who may log in, and how many at once.

    Args:
        key: The only key accepted; None accepts any that is not empty.
        secret: Likewise.
        connection_limit: Sessions at once for one key and endpoint; None for any number.
        slot_hold_s: How long a session that ended without a closing handshake keeps its slot.
    """

    key: str | None = None
    secret: str | None = attrs.field(default=None, repr=False)
    connection_limit: int | None = 1
    slot_hold_s: float = 0.0
    _slots: dict[tuple[str, str], dict[int, float]] = attrs.field(factory=dict, init=False)

    def accepts(self, key: object, secret: object) -> bool:
        """Whether these are the account's key and secret."""
        return self._fits(key, self.key) and self._fits(secret, self.secret)

    @staticmethod
    def _fits(given: object, expected: str | None) -> bool:
        if not isinstance(given, str) or not given:
            return False
        return expected is None or given == expected

    def claim(self, session: int, key: str, endpoint: str, now_s: float) -> bool:
        """Take a slot of this key and endpoint; False where none is free."""
        slots = self._slots.setdefault((key, endpoint), {})
        for holder in [holder for holder, until_s in slots.items() if until_s <= now_s]:
            del slots[holder]
        if self.connection_limit is not None and len(slots) >= self.connection_limit:
            return False
        slots[session] = float("inf")
        return True

    def release(self, session: int, key: str, endpoint: str, now_s: float, *, clean: bool) -> None:
        """Give the slot back: at once after a closing handshake, else ``slot_hold_s`` later."""
        slots = self._slots.get((key, endpoint), {})
        if session not in slots:
            return
        if clean or not self.slot_hold_s:
            del slots[session]
            if not slots:
                del self._slots[key, endpoint]
        else:
            slots[session] = now_s + self.slot_hold_s


class Refusals:
    """Answers planned by a test or a script of faults, in the order planned."""

    def __init__(self) -> None:
        self._planned: dict[When, deque[int | Silence]] = {}

    def plan(self, when: When, answer: int | Silence, times: int = 1) -> None:
        """Answer the next ``times`` of ``when`` with this code, or not at all."""
        planned = self._planned.setdefault(when, deque(maxlen=_MOST_PLANNED))
        planned.extend([answer] * min(times, _MOST_PLANNED))

    def take(self, when: When) -> int | Silence | None:
        """The answer planned for this one; None where none is."""
        planned = self._planned.get(when)
        return planned.popleft() if planned else None

    def clear(self) -> None:
        """Forget all that was planned."""
        self._planned.clear()
