"""The kinds of records that the simulated market makes, each described once.

Connections, REST and the market's record know no kind by name. A new kind is its struct, its
generator, its frame on the wire, its row in REST's answers, and its entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs

from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.rest_quotes import quote_row
from mdservice.simulator.wire import Encoding, OutFrame, S, SimQuote, SimRecord, encode_quotes

__all__ = ["KINDS", "QUOTES", "Encode", "Generator", "SimKind"]


class Generator(Protocol[S]):
    """Makes the records of one kind, for the symbols that somebody subscribes to."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """The followed symbols."""
        ...

    def follow(self, symbols: Iterable[str], *, without: AbstractSet[str] = frozenset()) -> None:
        """Make records of these symbols from now on; never of those in ``without``."""
        ...

    def due(self, elapsed_s: float) -> int:
        """How many records have come due since the last call."""
        ...

    def take(self, count: int, now_ns: int) -> list[S]:
        """The next ``count`` records, with rising times up to ``now_ns``."""
        ...


_Encoded_contra = TypeVar("_Encoded_contra", bound=SimRecord, contravariant=True)


class Encode(Protocol[_Encoded_contra]):
    """Encodes records as one frame of the stream; ``spoil`` adds one that breaks the schema."""

    def __call__(
        self, records: Sequence[_Encoded_contra], encoding: Encoding, /, *, spoil: bool
    ) -> OutFrame:
        """The frame."""
        ...


@attrs.frozen(eq=False)
class SimKind(Generic[S]):
    """One kind of record in the simulated market.

    Attributes:
        channel: Alpaca's name of the stream, and of the list in REST's answers: ``quotes``.
        generator: Returns the kind's generator, before its first record.
        encode: Encodes a list of records for the stream.
        path: The path of the history in REST. The latest records are at ``path`` + ``/latest``.
        row: Returns a record as it appears in REST's answers, for msgspec to encode.
    """

    channel: str
    generator: Callable[[SimulatorConfig], Generator[S]]
    encode: Encode[S]
    path: str
    row: Callable[[S], Any]

    def __repr__(self) -> str:
        return f"<SimKind {self.channel}>"


QUOTES: Final[SimKind[SimQuote]] = SimKind(
    channel="quotes",
    generator=SimulatorConfig.market,
    encode=encode_quotes,
    path="/v2/stocks/quotes",
    row=quote_row,
)

KINDS: Final[tuple[SimKind[Any], ...]] = (QUOTES,)
"""Every kind that the simulated market makes."""
