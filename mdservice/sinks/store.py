"""What a price store is: a place that takes a batch of prices and events in one step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import attrs

__all__ = ["Message", "PriceStore", "RenewingStore", "WriteBatch"]


@attrs.define
class Message:
    """One message to publish; made once per quote, so not frozen, which costs four times as much.

    Attributes:
        channel: ``price.updated`` or ``feed.status``.
        payload: The JSON text, encoded once; the same bytes serve key, channel and log.
        symbol: The symbol of a price event; None for any other message.
    """

    channel: str
    payload: bytes
    symbol: str | None = None


@attrs.frozen
class WriteBatch:
    """All that is written in one transaction.

    Attributes:
        number: Counts the batches of one service instance, from 1, without a step.
        prices: The newest price object of each symbol in the batch, by symbol.
        messages: What is published, in order. Price events are also appended to the event
            log where one is configured.
        ages_s: Of prices that are written once more, how many seconds ago that was first done:
            so much sooner they expire. Prices that are not named here are new.
    """

    number: int
    prices: Mapping[str, bytes]
    messages: Sequence[Message]
    ages_s: Mapping[str, int] = attrs.field(factory=dict)


class PriceStore(Protocol):
    """One connection to a store, owned by one writer.

    The writer calls :meth:`connect` first and again after every :class:`StoreUnavailable`.
    Calls never overlap. A cancelled call leaves the store unconnected and the batch
    uncertain, as a lost connection does.
    """

    @property
    def address(self) -> str:
        """Where the store is, without any secret."""
        ...

    @property
    def command_errors(self) -> int:
        """How many commands failed inside executed transactions.

        They do not undo the rest: an ``XADD`` to a key that is no stream leaves the prices
        written and the event log without the event.
        """
        ...

    @property
    def last_command_error(self) -> str | None:
        """The server's words for the last of them."""
        ...

    async def connect(self) -> None:
        """Open a connection, and end the previous one where the server still holds it.

        When this returns, nothing that was sent on the previous connection can be executed
        any more, so what :meth:`last_batch` then tells is final.

        Raises:
            StoreUnavailable: No connection.
            StoreRefused: The server refuses the login or a command that is needed.
        """
        ...

    async def last_batch(self) -> int:
        """The number of the last batch that this instance's writer had executed, or 0.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...

    async def write(self, batch: WriteBatch) -> None:
        """Execute the batch as one transaction: every key, then every message, the number.

        Raises:
            StoreUnavailable: The connection was lost; the batch may or may not be executed.
            StoreRefused: The server refused it; nothing of it was executed.
        """
        ...

    async def read_prices(self, symbols: Iterable[str]) -> Mapping[str, bytes]:
        """The price objects of these symbols, those without one left out.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...

    async def ping(self) -> None:
        """Ask whether the server answers and would take writes.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...

    async def aclose(self) -> None:
        """Close the connection; never raises for a broken one."""
        ...


@runtime_checkable
class RenewingStore(Protocol):
    """A price store that can renew a price without writing it again.

    For a store without this, the writer writes the prices again.
    """

    async def renew(self, symbols: Iterable[str]) -> Sequence[str]:
        """Let these prices live for their whole life from now on.

        Returns:
            The symbols that have no price in the store.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...
