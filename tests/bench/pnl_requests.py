"""How long one answer takes: in the process itself, and over HTTP from another.

Between two requests either every price is replaced, or none: the dearest and the cheapest case.
In process that is the tracker's report and its JSON; over HTTP everything from the request's first
byte to the answer's last, on a connection that is kept.
"""

from __future__ import annotations

import gc
import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anyio
import attrs

from mdservice.cli import GC_THRESHOLD
from mdservice.gateway.make import make_tracker
from mdservice.gateway.router import Answers
from mdservice.gateway.tracker import PnlTracker
from mdservice.settings import Settings
from tests.bench.pnl_account import Account, Writer
from tests.bench.pnl_gateway import path_of
from tests.bench.pnl_times import Times
from tests.bench.processes import running

Way = Literal["in process, keys", "in process, keys, frozen", "in process, live", "HTTP, keys"]
_START_LIMIT_S = 15.0
_TAKEN_LIMIT_S = 10.0
_POLL_S = 0.005
_MOST_TOLD = 3


@attrs.frozen
class Counts:
    """How many requests are measured, by the number of positions."""

    keys: dict[int, int]
    live: dict[int, int]
    http: dict[int, int]


@attrs.frozen
class Requests:
    """Some requests of one kind.

    Attributes:
        way: Where it is measured, and where the answer takes its prices.
        positions: In the answer.
        prices: ``all new`` or ``the same`` as at the request before.
        figures: Of :meth:`tests.bench.pnl_times.Times.figures`.
        wrong: What was not as it must be.
    """

    way: Way
    positions: int
    prices: str
    figures: dict[str, Any]
    wrong: list[str]


class Round:
    """The requests of one kind, their times and what was wrong with their answers.

    Args:
        way: As :attr:`Requests.way`.
        account: Whose positions are asked for.
        changing: Whether all prices are new at each request.
    """

    def __init__(self, way: Way, account: Account, *, changing: bool) -> None:
        self._way: Way = way
        self._account = account
        self._changing = changing
        self.times = Times()
        self._wrong: list[str] = []

    def turns(self, after: int, count: int) -> Iterator[int]:
        """Which prices hold at each of the requests."""
        return iter(range(after + 1, after + 1 + count) if self._changing else [after] * count)

    def note(self, started_s: float, body: bytes, turn: int) -> None:
        """An answer has just come."""
        self.times.end(started_s)
        if len(self._wrong) < _MOST_TOLD:
            self._wrong += self._account.wrong(body, turn)

    def result(self) -> Requests:
        """All of it."""
        return Requests(
            self._way,
            self._account.count,
            "all new" if self._changing else "the same",
            self.times.figures(),
            self._wrong,
        )


async def in_process(url: str, writer: Writer, counts: Counts) -> list[Requests]:
    """Ask trackers in this process; other than over HTTP nothing else goes on in it.

    The garbage collector is set as ``mdservice gateway`` sets it.
    """
    gc.set_threshold(*GC_THRESHOLD)
    found: list[Requests] = []
    for count, requests in counts.keys.items():
        account = Account(0, count)
        tracker = make_tracker(account.rows().copy, Settings(), redis_url=url)
        found += await _ask_keys(tracker, account, writer, requests)
        await tracker.aclose()
    for count, requests in counts.live.items():
        account = Account(0, count)
        tracker = make_tracker(account.rows().copy, Settings(), redis_url=url, read_from="live")
        async with tracker.running():
            found += await _ask_live(tracker, account, writer, requests)
    return found


async def _ask_keys(
    tracker: PnlTracker, account: Account, writer: Writer, count: int
) -> list[Requests]:
    writer.write(account, 1, publish=False)
    answers = Answers(tracker)
    await answers.whole()

    async def ask(these: Round, after: int) -> int:
        turn = after
        for turn in these.turns(after, count):
            if turn != after:
                writer.write(account, turn, publish=False)
            started_s = these.times.begin()
            body = await answers.whole()
            these.note(started_s, body, turn)
        return turn

    same = Round("in process, keys", account, changing=False)
    new = Round("in process, keys", account, changing=True)
    await ask(new, await ask(same, 1))
    return [each.result() for each in (same, new)]


async def _ask_live(
    tracker: PnlTracker, account: Account, writer: Writer, count: int
) -> list[Requests]:
    answers, found, turn = Answers(tracker), [], 1
    writer.write(account, turn, publish=True)
    await _until_taken(tracker, account, turn)
    for changing in (False, True):
        these = Round("in process, live", account, changing=changing)
        for turn in these.turns(turn, count):  # noqa: B020 - it goes on where it was
            if changing:
                writer.write(account, turn, publish=True)
                await _until_taken(tracker, account, turn)
            started_s = these.times.begin()
            body = await answers.whole()
            these.note(started_s, body, turn)
        found.append(these.result())
    return found


async def _until_taken(tracker: PnlTracker, account: Account, turn: int) -> None:
    """Until the subscriber has heard all prices of a turn."""
    total = account.total(turn)
    with anyio.fail_after(_TAKEN_LIMIT_S):
        while tracker.totals().priced < account.count or tracker.totals().unrealized_pnl != total:
            await anyio.sleep(_POLL_S)


def over_http(url: str, writer: Writer, folder: Path, counts: Counts) -> list[Requests]:
    """Ask gateways in processes of their own, one for each number of positions."""
    found: list[Requests] = []
    for positions, count in counts.http.items():
        account = Account(0, positions)
        with running(
            "tests.bench.pnl_gateway",
            *(url, f"{account.first}:{account.count}"),
            core=None,
            others_core=None,
            log=folder / "gateway.log",
        ) as gateway:
            port = gateway.hear(_START_LIMIT_S)["port"]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_LIMIT_S)
            try:
                found += _ask_http(connection, account, writer, count)
            except Exception as exc:
                exc.add_note(f"the gateway logged at last:\n{gateway.last_words()}")
                raise
            finally:
                connection.close()
    return found


def _ask_http(
    connection: http.client.HTTPConnection, account: Account, writer: Writer, count: int
) -> list[Requests]:
    found, turn, path = [], 1, path_of(account)
    writer.write(account, turn, publish=False)
    _get(connection, path)
    for changing in (False, True):
        these = Round("HTTP, keys", account, changing=changing)
        for turn in these.turns(turn, count):  # noqa: B020 - it goes on where it was
            if changing:
                writer.write(account, turn, publish=False)
            started_s = these.times.begin()
            body = _get(connection, path)
            these.note(started_s, body, turn)
        found.append(these.result())
    return found


def _get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != http.client.OK:
        raise RuntimeError(f"the gateway answered {answer.status}: {body[:200]!r}")
    return body
