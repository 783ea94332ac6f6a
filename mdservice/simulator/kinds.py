"""What the simulated markets are made of: kinds of records, and markets that make them.

Connections, REST and the record of the markets know no kind by name. A kind is its struct, its
frame on the wire and its row in REST's answers; a market makes one or more kinds together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import attrs

from mdservice.simulator.feeds import SimFeed
from mdservice.simulator.http import Answer
from mdservice.simulator.market import MarketRecord
from mdservice.simulator.wire import Encoding, OutFrame, S, SimRecord

if TYPE_CHECKING:
    from mdservice.simulator.config import SimulatorConfig
    from mdservice.simulator.rest_history import RestRules

__all__ = ["Batch", "Encode", "Records", "SimKind", "SimMarket", "Source"]

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
    """One kind of record in the simulation.

    Attributes:
        feed: The stream that has it.
        channel: Alpaca's name of the channel: ``quotes``.
        encode: Encodes a list of records for the stream.
        keep: Keeps published records for REST, where it does more than add them to the record of
            their kind: a correction changes the record of the trades.
        wants: Whether a subscription to these symbols of the channel includes a record; None
            where that is decided by the record's symbol.
        record: Makes the memory that keeps so many records for REST.
        first: Returns the kept records that each subscription to these symbols brings at once:
            whole order books. None for a kind without such records.
    """

    feed: SimFeed
    channel: str
    encode: Encode[S]
    keep: Callable[[Records, Sequence[S]], None] | None = None
    wants: Callable[[S, AbstractSet[str]], bool] | None = None
    record: Callable[[int], MarketRecord[S]] = MarketRecord
    first: Callable[[MarketRecord[S], AbstractSet[str]], Sequence[S]] | None = None

    def __repr__(self) -> str:
        return f"<SimKind {self.feed.name} {self.channel}>"


Records = Mapping[SimKind[Any], MarketRecord[Any]]
"""What was published of each kind, for REST."""
Batch = tuple[SimKind[Any], Sequence[Any]]
"""Records of one kind, in order."""


class Source(Protocol):
    """Makes the records of a market, for the symbols that clients subscribe to."""

    @property
    def symbols(self) -> Collection[str]:
        """The followed symbols."""
        ...

    def follow(self, wanted: Mapping[str, AbstractSet[str]]) -> None:
        """Make records of the symbols of each channel from now on; ``*`` may be among them."""
        ...

    def make(self, elapsed_s: float, now_ns: int) -> Iterable[Batch]:
        """What has come due since the last call, in the order in which it is published.

        Args:
            elapsed_s: Seconds since the first symbol was followed.
            now_ns: UTC nanoseconds; no record is later.
        """
        ...


def _no_routes(_records: Records, _rules: RestRules) -> Mapping[str, Answer]:
    return {}


@attrs.frozen(eq=False)
class SimMarket:
    """A market: its kinds, who makes their records, and what REST answers about them.

    Attributes:
        kinds: All of one feed.
        source: Returns the market's source before its first record; None where the configuration
            wants no records but those that :meth:`Simulator.send_records` is given.
        routes: The answers to GET requests by path. A path that ends with ``/`` stands for all
            that begin with it; the rest is the call's ``name``.
    """

    kinds: tuple[SimKind[Any], ...]
    source: Callable[[SimulatorConfig, Records], Source | None]
    routes: Callable[[Records, RestRules], Mapping[str, Answer]] = _no_routes

    @property
    def feed(self) -> SimFeed:
        """The stream that has the kinds."""
        return self.kinds[0].feed
