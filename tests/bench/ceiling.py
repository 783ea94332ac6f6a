"""The ceiling: the service's own bytes, made beforehand, through a plain socket.

``python -m tests.bench.ceiling REDIS_SOCKET SYMBOLS SECONDS`` packs a few batches of one quote of
every symbol, as the service would: ``MULTI``, a ``SET`` and a ``PUBLISH`` each, the batch's number,
``EXEC``. It sends one after the other, reads the replies of each with hiredis before the next, and
prints what it sent and when. Nothing is received, decoded, routed or encoded meanwhile: what is
left is what Redis and the socket cost.
"""

from __future__ import annotations

import itertools
import socket
import sys
import time
from functools import partial
from pathlib import Path

import attrs
import hiredis
import msgspec

from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.publish.store import Message
from mdservice.redis_io.commands import BatchPacker, PackedBatch
from mdservice.redis_io.names import PRICE_CHANNEL
from tests.batches import write_batch
from tests.bench.listener import REPORT_CHANNEL
from tests.bench.processes import running
from tests.bench.runs import Stage
from tests.bench.tape import SPREAD_CENTS, bid_cents, symbol_names

SYMBOLS = 500
_BATCHES = 16
_TTL_S = 300
_READ_BYTES = 262_144
_LIMIT_S = 10.0
_NOTHING = object()


@attrs.frozen
class Ceiling:
    """What one socket took.

    Attributes:
        quotes_per_s: A ``SET`` and a ``PUBLISH`` each.
        wrong: What is not as it must be.
    """

    quotes_per_s: float
    wrong: list[str]


def measure(stage: Stage, seconds: float, folder: Path) -> Ceiling:
    """Send for some seconds, with a listener on the channel as there is in every run."""
    stage.store.flushall()
    other = partial(running, others_core=stage.cores.others)
    with other(
        "tests.bench.listener",
        str(stage.redis_path),
        core=stage.cores.others,
        log=folder / "listener.log",
    ) as listener:
        listener.hear(_LIMIT_S)
        with other(
            "tests.bench.ceiling",
            *(str(stage.redis_path), str(SYMBOLS), str(seconds)),
            core=stage.cores.program,
            log=folder / "ceiling.log",
        ) as child:
            sent = child.hear(seconds + _LIMIT_S)
            stage.store.publish(REPORT_CHANNEL, b"")
            heard = listener.hear(_LIMIT_S)["events"]
    quotes = sent["quotes"]
    wrong = [] if heard == quotes else [f"{heard} events were heard instead of {quotes}"]
    return Ceiling(quotes / sent["seconds"], wrong)


def _make_batches(symbols: list[str]) -> list[PackedBatch]:
    packer = BatchPacker(
        price_ttl_s=_TTL_S, event_log=None, event_log_maxlen=0, instance="bench-ceiling"
    )
    now_ns = time.time_ns()
    batches = []
    for cycle in range(_BATCHES):
        prices = {}
        for index, symbol in enumerate(symbols):
            cents = bid_cents(index, cycle)
            bid, ask = cents / 100, (cents + SPREAD_CENTS) / 100
            quote = Quote(symbol, bid, ask, 200, 300, now_ns, now_ns, cycle + 1)
            prices[symbol] = encode_quote(quote)
        messages = [Message(PRICE_CHANNEL, payload, symbol) for symbol, payload in prices.items()]
        batches.append(packer.batch(write_batch(cycle + 1, prices, messages)))
    return batches


def _send(path: str, batches: list[PackedBatch], seconds: float) -> tuple[int, float]:
    """How many batches went through, and in what time."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    reader = hiredis.Reader(notEnoughData=_NOTHING)
    started = time.monotonic()
    for sent, batch in enumerate(itertools.cycle(batches), start=1):
        sock.sendall(batch.data)
        for _ in range(batch.queued + 2):  # one reply a command, with MULTI and EXEC
            while (reply := reader.gets()) is _NOTHING:
                reader.feed(sock.recv(_READ_BYTES))
        if len(reply) != batch.queued:
            raise RuntimeError(f"the transaction was answered by {reply!r:.200}")
        elapsed = time.monotonic() - started
        if elapsed > seconds:
            return sent, elapsed
    raise AssertionError


def _main(path: str, symbols: list[str], seconds: float) -> None:
    sent, elapsed = _send(path, _make_batches(symbols), seconds)
    report = {"quotes": sent * len(symbols), "seconds": elapsed}
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1], symbol_names(int(sys.argv[2])), float(sys.argv[3]))
