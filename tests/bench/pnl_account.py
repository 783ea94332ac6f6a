"""What P&L is measured on: positions, the quotes of any turn, and by hand what they are worth.

In each turn every symbol has another price: its bid rises by a cent, the ask is one to three cents
above it. A third of the quantities are fractions, a fifth of the positions are short.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal

import attrs
import hiredis
import msgspec

from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.redis_io.commands import pack
from mdservice.redis_io.names import RedisNames
from tests.bench.tape import symbol_names

FIELDS = ("symbol", "qty", "avg_entry_price")
_HALF = Decimal("0.5")
_TIMEOUT_S = 10.0
_PART = 2_000
_READ_BYTES = 65_536
_SPOTS = 5


@attrs.frozen
class Account:
    """Positions in so many symbols, from a place in the list of all on.

    Attributes:
        first: Index of the first symbol.
        count: How many; each has one lot.
    """

    first: int
    count: int
    symbols: list[str] = attrs.field(init=False, repr=False)

    @symbols.default
    def _symbols(self) -> list[str]:
        return symbol_names(self.first + self.count)[self.first :]

    def rows(self) -> list[dict[str, str]]:
        """As a source tells them."""
        return [
            {"symbol": symbol, "qty": str(_qty(place)), "avg_entry_price": str(_paid(place))}
            for place, symbol in enumerate(self.symbols)
        ]

    def prices(self, place: int, turn: int) -> tuple[float, float]:
        """Bid and ask of a symbol in a turn."""
        bid_cents, ask_cents = _cents(place, turn)
        return bid_cents / 100, ask_cents / 100

    def quotes(self, turn: int) -> Iterator[Quote]:
        """One of each symbol, of this moment."""
        now_ns = time.time_ns()
        for place, symbol in enumerate(self.symbols):
            bid, ask = self.prices(place, turn)
            yield Quote(symbol, bid, ask, 2, 3, now_ns, now_ns, turn)

    def mid(self, place: int, turn: int) -> Decimal:
        """The price by hand."""
        return Decimal(sum(_cents(place, turn))) / 200

    def pnl(self, place: int, turn: int) -> Decimal:
        """The P&L of a position by hand."""
        return (self.mid(place, turn) - _paid(place)) * _qty(place)

    def total(self, turn: int) -> Decimal:
        """The P&L of all by hand."""
        return sum((self.pnl(place, turn) for place in range(self.count)), Decimal(0))

    def wrong(self, body: bytes, turn: int) -> list[str]:
        """What is not as it must be in an answer: the total, the counts, some rows."""
        answer, total = _decode(body), self.total(turn)
        found = []
        if answer.total_unrealized_pnl != total:
            found.append(f"total {answer.total_unrealized_pnl} in place of {total}")
        if (answer.priced, answer.unpriced, len(answer.positions)) != (self.count, 0, self.count):
            found.append(f"{answer.priced} of {self.count} positions are priced")
            return found
        for place in range(0, self.count, max(1, self.count // _SPOTS)):
            row = _decode_row(answer.positions[place])
            told = (row.symbol, row.current_price, row.unrealized_pnl, row.status)
            right = (self.symbols[place], self.mid(place, turn), self.pnl(place, turn), "live")
            if told != right:
                found.append(f"{told} in place of {right}")
        return found


class Row(msgspec.Struct):
    """What of a position is checked."""

    symbol: str
    current_price: Decimal | None
    unrealized_pnl: Decimal | None
    status: str


class _Answer(msgspec.Struct):
    positions: list[msgspec.Raw]
    total_unrealized_pnl: Decimal
    priced: int
    unpriced: int


_decode = msgspec.json.Decoder(_Answer).decode
_decode_row = msgspec.json.Decoder(Row).decode


class Writer:
    """Writes prices as the service does: the key, and the event where that is wanted.

    Args:
        url: Of the server's UNIX socket.
    """

    def __init__(self, url: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.connect(url.removeprefix("unix://"))
        self._replies = hiredis.Reader(notEnoughData=None)

    def write(self, account: Account, turn: int, *, publish: bool) -> None:
        """All prices of a turn."""
        commands: list[bytes] = []
        for quote in account.quotes(turn):
            payload = encode_quote(quote)
            commands.append(
                pack(b"SET", RedisNames().price_key(quote.symbol), payload, b"EX", b"300")
            )
            if publish:
                commands.append(pack(b"PUBLISH", b"price.updated", payload))
        self.send(commands)

    def send(self, commands: Sequence[bytes]) -> None:
        """Commands in order, so many at once that the server's answers fit into its buffers."""
        for start in range(0, len(commands), _PART):
            part = commands[start : start + _PART]
            self._socket.sendall(b"".join(part))
            left = len(part)
            while left:
                if not (data := self._socket.recv(_READ_BYTES)):
                    raise ConnectionResetError("the server closed it")
                self._replies.feed(data)
                while self._replies.gets() is not None:
                    left -= 1

    def forget(self) -> None:
        """Empty the server."""
        self.send([pack(b"FLUSHALL")])

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _cents(place: int, turn: int) -> tuple[int, int]:
    bid = 10_000 + place % 5_000 + turn
    return bid, bid + 1 + place % 3


def _qty(place: int) -> Decimal:
    shares = Decimal(1 + place % 7) + (_HALF if place % 3 == 0 else 0)
    return -shares if place % 5 == 0 else shares


def _paid(place: int) -> Decimal:
    return Decimal(1_000_025 + 50 * (place % 3_000)) / 10_000
