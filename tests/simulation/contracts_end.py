"""Options of the simulated account end: they expire, are exercised or assigned.

No trade update tells it. The activities do, posted at the end of the day: the contracts that are
gone without a price, and what was traded at the strike.

Source: Alpaca, "Non-trade activities for option events".
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Final, Literal

import attrs

from mdservice.simulator import Simulator
from mdservice.simulator.options import Contract
from mdservice.simulator.paper_account import Activity
from mdservice.simulator.wire import EXACT, plain

__all__ = ["EndedContracts", "end_contracts"]

_SHARES: Final = 100
_TYPES: Final = {"expiry": "OPEXP", "exercise": "OPEXC", "assignment": "OPASN"}


@attrs.frozen
class EndedContracts:
    """What became of contracts.

    Attributes:
        how: Expired, exercised by the account, or assigned to it.
        changes: Symbols, signed quantities and prices.
    """

    how: Literal["expiry", "exercise", "assignment"]
    changes: tuple[tuple[str, Decimal, Decimal], ...]


def end_contracts(
    sim: Simulator, symbol: str, rng: random.Random, now_ns: int, date: str
) -> EndedContracts | None:
    """End some contracts that are held; None without any."""
    account = sim._paper_account
    held = account.book.get(symbol)
    if held is None:
        return None
    count, contract = int(abs(held.qty)), Contract.parse(symbol)
    how = rng.choice(("expiry", "exercise" if held.qty > 0 else "assignment"))
    if how != "expiry":
        count = rng.randint(1, count)
    gone = Decimal(count).copy_sign(-held.qty)
    changes = [(symbol, gone, Decimal(0))]
    if how != "expiry":
        # Who exercises a call buys, and who has sold it sells; of a put the other way round.
        shares = -gone * _SHARES * (1 if contract.is_call else -1)
        changes.append((contract.root, shares, Decimal(str(contract.strike))))
    for place, (name, qty, price) in enumerate(changes):
        account.book.trade(name, qty, price)
        with localcontext(EXACT):
            paid = qty * price
            account.cash -= paid
        fields: Mapping[str, object] = {
            "date": date,
            "net_amount": plain(-paid),
            "symbol": name,
            "qty": plain(qty),
            "status": "executed",
        }
        kind = "OPTRD" if place else _TYPES[how]
        account.add_activity(kind, now_ns, fields | ({"price": plain(price)} if place else {}))
    if len(changes) > 1 and rng.random() < 0.5:  # as Alpaca's documentation has it
        first, second = account.activities[-2], account.activities[-1]
        row = {**second.row, "id": first.id}
        account.activities[-1] = Activity(first.id, second.activity_type, second.at_ns, row)
    sim.notify()
    return EndedContracts(how, tuple(changes))
