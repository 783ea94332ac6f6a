"""What a price store is: a place that takes a batch of prices and events in one step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import anyio
import attrs

from mdservice.errors import StoreError
from mdservice.model.payload import decode_quote
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger

__all__ = [
    "READ_LIMIT_S",
    "Message",
    "PriceStore",
    "RenewingStore",
    "WriteBatch",
    "read_last_quotes",
]


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


# What an earlier run wrote last: where this one goes on.


_log = get_logger(__name__)

READ_LIMIT_S = 2.0
"""A store that is away must not hold up the start."""


async def read_last_quotes(
    store: PriceStore, symbols: Sequence[str], latest_ns: int
) -> Sequence[Quote]:
    """The quotes of the symbols' keys; none where the store does not answer.

    A key that cannot be read, or whose time is too far ahead, is left out and logged.

    Args:
        store: Connected here; the writer connects it anew.
        symbols: Of ``*`` nothing is known.
        latest_ns: The latest time that a quote may have, UTC nanoseconds.
    """
    named = [symbol for symbol in symbols if symbol != EVERY_SYMBOL]
    if not named:
        return ()
    prices: Mapping[str, bytes] = {}
    reason = f"no answer within {READ_LIMIT_S:g} s"
    try:
        with anyio.move_on_after(READ_LIMIT_S):
            await store.connect()
            prices = await store.read_prices(named)
            reason = ""
    except StoreError as exc:
        reason = str(exc)
    if reason:
        _log.warning("last_prices_not_read", url=store.address, reason=reason)
    found = [_read(symbol, payload, latest_ns) for symbol, payload in prices.items()]
    return [quote for quote in found if quote is not None]


def _read(symbol: str, payload: bytes, latest_ns: int) -> Quote | None:
    try:
        quote = decode_quote(payload)
    except ValueError as exc:
        reason = str(exc)
    else:
        if quote.symbol == symbol and quote.ts_event_ns <= latest_ns:
            return quote
        reason = f"it is of {quote.symbol} at {quote.timestamp}"
    _log.warning("last_price_ignored", key=f"price:{symbol}", reason=reason)
    return None
