"""What can go wrong with a REST answer, on purpose."""

from __future__ import annotations

import http
from typing import Any, TypeVar

import attrs
from attrs import validators

from mdservice.simulator.rest.refusal import RECENT_SIP

__all__ = ["CutRest", "GarbleRest", "RefuseRest", "RestFault", "RestFaults", "SlowRest"]

_MOST_PLANNED = 1_000


def _known_status(_: Any, __: Any, status: int) -> None:
    http.HTTPStatus(status)


@attrs.frozen
class RefuseRest:
    """Answer with this HTTP status, Alpaca's code and text; 0 leaves the code out.

    As in all of these: ``path`` is that of the requests meant, None for any, and ``times``
    how many of them. With ``symbol``, only requests that name it are refused.
    """

    status: int = attrs.field(default=403, validator=_known_status)
    code: int = RECENT_SIP
    message: str = "subscription does not permit querying recent SIP data"
    path: str | None = None
    times: int = attrs.field(default=1, validator=validators.ge(1))
    symbol: str | None = None

    def means(self, symbols: str) -> bool:
        """Whether a request for these symbols, separated by commas, is refused."""
        return self.symbol is None or self.symbol in symbols.split(",")


@attrs.frozen
class SlowRest:
    """Answer so many seconds later; with ``inf`` never."""

    delay_s: float = attrs.field(default=1.0, validator=validators.ge(0))
    path: str | None = None
    times: int = attrs.field(default=1, validator=validators.ge(1))


@attrs.frozen
class CutRest:
    """End the connection in the middle of the answer; or, where it ``stalls``, say no more."""

    path: str | None = None
    times: int = attrs.field(default=1, validator=validators.ge(1))
    stalls: bool = False


@attrs.frozen
class GarbleRest:
    """Answer with JSON that cannot be read."""

    path: str | None = None
    times: int = attrs.field(default=1, validator=validators.ge(1))


RestFault = RefuseRest | SlowRest | CutRest | GarbleRest

_Kind = TypeVar("_Kind", bound=RestFault)


@attrs.define
class _Planned:
    fault: RestFault
    left: int


class RestFaults:
    """The REST faults that are still to come, in the order planned."""

    def __init__(self) -> None:
        self._planned: list[_Planned] = []

    def plan(self, fault: RestFault) -> None:
        """Put a fault into force for the next requests that it means.

        Raises:
            ValueError: A thousand are planned already.
        """
        if len(self._planned) >= _MOST_PLANNED:
            raise ValueError(f"{_MOST_PLANNED} REST faults are planned already")
        self._planned.append(_Planned(fault, fault.times))

    def take(self, kind: type[_Kind], path: str, symbols: str = "") -> _Kind | None:
        """The fault of this kind for this request, and use it up; None where there is none."""
        for planned in self._planned:
            fault = planned.fault
            if isinstance(fault, RefuseRest) and not fault.means(symbols):
                continue
            if isinstance(fault, kind) and fault.path in {None, path}:
                planned.left -= 1
                if not planned.left:
                    self._planned.remove(planned)
                return fault
        return None

    def clear(self) -> None:
        """Forget all that was planned."""
        self._planned.clear()
