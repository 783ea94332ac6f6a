"""What an HTTP answer means for positions. Pure."""

from __future__ import annotations

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.parse import parse_positions

__all__ = ["OK", "read_answer", "root_cause"]

OK = 200
_REDIRECTS = range(300, 400)
_SERVER_ERROR = 500
_WORTH_ANOTHER_TRY = frozenset((408, 425, 429))


def read_answer(status: int, body: bytes, address: str, mend: str) -> list[Position]:
    """The positions of an answer.

    Args:
        status: The HTTP status.
        body: Looked at only with status 200.
        address: Who answered, for the errors.
        mend: What to check when the answer is a no: ``check the URL``.

    Raises:
        PositionsUnavailable: The server is busy or broken, or its answer ends too early.
        PositionsRefused: It says no, or answers with something else than positions.
    """
    if status == OK:
        return parse_positions(body, address)
    if status >= _SERVER_ERROR or status in _WORTH_ANOTHER_TRY:
        raise PositionsUnavailable(f"{address} answers HTTP {status}; worth another try")
    if status in _REDIRECTS:
        raise PositionsRefused(
            f"{address} answers HTTP {status}, a redirect, which is not followed since it could "
            f"carry a login elsewhere: {mend}"
        )
    raise PositionsRefused(f"{address} answers HTTP {status}: {mend}")


def root_cause(exc: BaseException) -> str:
    """The innermost error's text: HTTP libraries wrap it, with their objects' names or none."""
    while (inner := exc.__cause__ or exc.__context__) is not None:
        exc = inner
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
