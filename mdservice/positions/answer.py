"""What an HTTP answer means for positions. Pure."""

from __future__ import annotations

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.parse import parse_positions
from mdservice.urls import mask_url

__all__ = ["NO_CONTENT", "OK", "read_answer", "root_cause"]

OK = 200
NO_CONTENT = 204
_MOST_SHOWN = 200
_REDIRECTS = range(300, 400)
_SERVER_ERROR = 500
_WORTH_ANOTHER_TRY = frozenset((408, 425, 429))


def read_answer(
    status: int, body: bytes, address: str, advice: str, location: str | None = None
) -> list[Position]:
    """The positions of an answer; none of a 204.

    An empty body with status 200 is no answer: a server that fails in the middle sends that, and it
    must not look as if everything had been sold.

    Args:
        status: The HTTP status.
        body: Looked at only with status 200.
        address: Who answered, for the errors.
        advice: What to check when the answer is a no: ``check the URL``.
        location: Where a redirect leads, as the server wrote it.

    Raises:
        PositionsUnavailable: The server is busy or broken, or its answer ends too early.
        PositionsRefused: It says no, or answers with something else than positions.
    """
    if status == OK:
        return parse_positions(body, address)
    if status == NO_CONTENT:
        return []
    if status >= _SERVER_ERROR or status in _WORTH_ANOTHER_TRY:
        raise PositionsUnavailable(f"{address} answers HTTP {status}; worth another try")
    if status in _REDIRECTS:
        target = f" to {_shown(location)}" if location else ""
        raise PositionsRefused(
            f"{address} answers HTTP {status}, a redirect{target}, which is not followed since it "
            f"could carry a login elsewhere: name the right URL, or {advice}"
        )
    raise PositionsRefused(f"{address} answers HTTP {status}: {advice}")


def _shown(location: str) -> str:
    """Without a login or the values of a query, also where it is only a path."""
    masked = mask_url(location)
    if masked == location:
        masked = location.partition("?")[0].partition("#")[0]
    return "".join(char if char.isprintable() else "\ufffd" for char in masked[:_MOST_SHOWN])


def root_cause(exc: BaseException) -> str:
    """The innermost error's text: HTTP libraries wrap it, with their objects' names or none."""
    while (inner := exc.__cause__ or exc.__context__) is not None:
        exc = inner
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
