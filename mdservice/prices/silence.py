"""When a server that says nothing is asked, and when it is given up. Pure."""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["ANSWER_LIMIT_S", "PING_AFTER_S", "Silence"]

PING_AFTER_S: Final = 2.0
"""How long the server may say nothing before it is asked whether it is there."""
ANSWER_LIMIT_S: Final = 3.0
"""How long the answer may take."""


@attrs.define
class Silence:
    """How long nothing has been heard. All times are monotonic seconds.

    Attributes:
        heard_s: When something was heard last.
        asked_s: When the server was asked since then, or None.
    """

    heard_s: float
    asked_s: float | None = None

    def ask(self, now_s: float) -> bool:
        """Whether to ask now; counts as asked."""
        if self.asked_s is not None or now_s - self.heard_s < PING_AFTER_S:
            return False
        self.asked_s = now_s
        return True

    def too_long(self, now_s: float, *, anything: bool) -> bool:
        """Whether to give up, after having listened.

        Args:
            now_s: When listening ended. What passed since then does not count: a program that
                was held up does not make the server deaf.
            anything: Whether anything was heard.
        """
        if anything:
            self.heard_s, self.asked_s = now_s, None
            return False
        return self.asked_s is not None and now_s - self.asked_s >= ANSWER_LIMIT_S
