"""Which trades update the consolidated last price, by the SIPs' tables of sale conditions. Pure.

Tapes A and B follow the table of the Consolidated Tape System, tape C and stocks without a listing
that of the UTP Plan. A trade with several conditions counts only if each of them lets it. A code
that the table does not have does not count. Crypto has no conditions, and every trade of an option
counts.

Some conditions update the last price only where the trade is the first one of its day that can:
sold out of sequence, derivatively priced, prior reference price. Sold last may also follow a last
trade of the same exchange. If no last trade of an earlier day is known, it is not known either
whether such a trade is the first one, and it does not count.

Source: SIAC, "Consolidated Tape System (CTS) Output Specification", and Nasdaq, "UTP Trade Data
Feed (UTDF) Specification": the tables of sale conditions with the column "update last". Barchart,
"ddfplus Processing of Special Sale Conditions", and Alpaca, "Stock Minute Bars", agree.
"""

from __future__ import annotations

from typing import Final

from mdservice.model.timestamps import new_york_day
from mdservice.model.trade import Trade

__all__ = ["updates_last"]

_REGULAR: Final = frozenset(("", " ", "@"))

_CTA_YES: Final = _REGULAR | frozenset(
    (
        "E",  # automatic execution
        "F",  # intermarket sweep order
        "K",  # rule 127 or 155
        "X",  # cross trade
        "5",  # market center reopening trade
        "6",  # market center closing trade
        "9",  # corrected consolidated close
    )
)
_CTA_IF_FIRST: Final = frozenset(
    (
        "L",  # sold last
        "O",  # market center opening trade
        "P",  # prior reference price
        "Z",  # sold out of sequence
        "4",  # derivatively priced
    )
)
# No: B average price, C cash, H price variation, I odd lot, M official close, N next day,
# Q official open, R seller, T extended hours, U extended hours sold out of sequence,
# V contingent trade, 7 qualified contingent trade.

_UTP_YES: Final = _REGULAR | frozenset(
    (
        "A",  # acquisition
        "B",  # bunched trade
        "D",  # distribution
        "F",  # intermarket sweep
        "K",  # rule 155
        "O",  # opening prints
        "S",  # split trade
        "X",  # cross trade
        "Y",  # yellow flag
        "1",  # stopped stock
        "5",  # reopening prints
        "6",  # closing prints
        "9",  # corrected consolidated close
    )
)
_UTP_IF_FIRST: Final = frozenset(
    (
        "G",  # bunched sold trade
        "L",  # sold last
        "P",  # prior reference price
        "Z",  # sold out of sequence
        "2",  # stopped stock, sold last
        "3",  # stopped stock, sold out of sequence
        "4",  # derivatively priced
    )
)
# No: C cash, H price variation, I odd lot, M official close, N next day, Q official open,
# R seller, T form T, U extended hours sold out of sequence, V contingent trade, W average price,
# 7 qualified contingent trade.

_SOLD_LAST: Final = frozenset(("L", "2"))
_TABLES: Final = {
    "A": (_CTA_YES, _CTA_IF_FIRST),
    "B": (_CTA_YES, _CTA_IF_FIRST),
    "C": (_UTP_YES, _UTP_IF_FIRST),
    "N": (_UTP_YES, _UTP_IF_FIRST),
    "O": (_UTP_YES, _UTP_IF_FIRST),
}
_EITHER: Final = (_CTA_YES & _UTP_YES, _CTA_IF_FIRST & _UTP_IF_FIRST)
"""What both tables let pass, for a stock without a tape."""


def updates_last(trade: Trade, last: Trade | None, *, is_stock: bool) -> bool:
    """Whether a trade updates the consolidated last price.

    Args:
        trade: The trade.
        last: The last one so far; None if that is not known.
        is_stock: Whether it is in a stock; otherwise it does.
    """
    if not is_stock:
        return True
    yes, if_first = _TABLES.get(trade.tape or "", _EITHER)
    conditional = [code for code in trade.conditions if code not in yes]
    if not conditional:
        return True
    if last is None or not if_first.issuperset(conditional):
        return False
    if new_york_day(last.ts_event_ns) < new_york_day(trade.ts_event_ns):
        return True
    return _SOLD_LAST.issuperset(conditional) and trade.exchange == last.exchange
