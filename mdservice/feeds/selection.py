"""Which driver to try next: the contract's rule for ``auto``, as a small state machine.

Two failed starts change the driver. Refusals by code or HTTP status are answers, so the
driver works and they never count. While no driver gets through, the drivers alternate under
one back-off. Once the second one has logged in, it stays until the next start.
"""

from __future__ import annotations

from collections.abc import Sequence

from mdservice.feeds.driver import Driver

__all__ = ["DriverSelection"]

_FAILURES_BEFORE_CHANGE = 2


class DriverSelection:
    """The drivers to choose from, in the order of preference.

    Args:
        drivers: One, where the settings name it; two for ``auto``.
    """

    def __init__(self, drivers: Sequence[Driver]) -> None:
        if not drivers:
            raise ValueError("at least one driver is needed")
        self._drivers = tuple(drivers)
        self._index = 0
        self._failures = 0
        self._settled = len(drivers) == 1
        self._change_told = False

    @property
    def current(self) -> Driver:
        """The driver to try next, or in use."""
        return self._drivers[self._index]

    def start_failed(self, *, unusable: bool = False) -> None:
        """A start of the current driver failed in transport.

        Args:
            unusable: The driver itself cannot work here; it is not worth a second try.
        """
        if self._settled:
            return
        self._failures += 1
        if unusable or self._failures >= _FAILURES_BEFORE_CHANGE:
            self._index = (self._index + 1) % len(self._drivers)
            self._failures = 0

    def logged_in(self) -> bool:
        """The current driver logged in.

        Returns:
            Whether this is a change of driver that has not been told yet.
        """
        self._failures = 0
        if self._index == 0 or self._change_told:
            return False
        self._settled = True
        self._change_told = True
        return True
