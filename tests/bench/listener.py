"""The reader, as a process: hears ``price.updated`` and tells what came, when and in what order.

``python -m tests.bench.listener REDIS_SOCKET [deaf]`` prints ``{"ready": true}``; a deaf one hears
nothing, so that events can be published without a reader. A message on
:data:`REPORT_CHANNEL` makes it print what it heard since the one before: it comes behind every
event that was published earlier, so none is missed. It ends with its input.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from array import array
from typing import Any

import hiredis
import msgspec

from mdservice.model.timestamps import parse_rfc3339

SLOT_S = 0.05
"""Events are counted per slot of monotonic time, so that a rate can be had for any window."""
REPORT_CHANNEL = "bench.report"
_READ_BYTES = 262_144
_SECOND_LENGTH = len("2026-11-20T15:51:44")
_MOST_LATENCIES = 2_000_000
_NOTHING = object()


class _Event(msgspec.Struct, gc=False):
    symbol: str
    bid: float
    timestamp: str


class Ear:
    """What was heard since the last report."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Event).decode
        self._last_bid: dict[str, float] = {}
        self._second = ""
        self._second_ns = 0
        self._clear()

    def _clear(self) -> None:
        self._events = 0
        self._out_of_order = 0
        self._slots: dict[int, int] = {}
        self._latencies_ns = array("q")

    def hear(self, payloads: list[bytes], now_ns: int) -> None:
        """Take the messages of one read of the socket."""
        slot = int(time.monotonic() / SLOT_S)
        self._slots[slot] = self._slots.get(slot, 0) + len(payloads)
        self._events += len(payloads)
        decode, last_bid, note = self._decode, self._last_bid, self._latencies_ns.append
        for payload in payloads:
            event = decode(payload)
            symbol = event.symbol
            if event.bid <= last_bid.get(symbol, 0.0):  # bids rise from quote to quote
                self._out_of_order += 1
            last_bid[symbol] = event.bid
            text = event.timestamp  # read in place: at a flood this is most of the work
            if text[:_SECOND_LENGTH] != self._second:
                self._second = text[:_SECOND_LENGTH]
                self._second_ns = parse_rfc3339(self._second + "Z")
            decimals = text[_SECOND_LENGTH + 1 : _SECOND_LENGTH + 10]
            if decimals.isdecimal():
                note(now_ns - self._second_ns - int(decimals))
            else:
                note(now_ns - parse_rfc3339(text))
        del self._latencies_ns[_MOST_LATENCIES:]

    def report(self) -> dict[str, Any]:
        """Everything since the report before."""
        ordered = sorted(self._latencies_ns)
        last = len(ordered) - 1
        report = {
            "events": self._events,
            "out_of_order": self._out_of_order,
            "slots": sorted(self._slots.items()),
            "p50_ms": ordered[last // 2] / 1e6 if ordered else None,
            "p99_ms": ordered[last * 99 // 100] / 1e6 if ordered else None,
        }
        self._clear()
        return report


def listen(path: str, *, deaf: bool) -> None:
    """Subscribe, then hear and report until the input ends."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    channels = REPORT_CHANNEL if deaf else f"price.updated {REPORT_CHANNEL}"
    sock.sendall(f"SUBSCRIBE {channels}\r\n".encode())
    reader, ear = hiredis.Reader(notEnoughData=_NOTHING), Ear()
    chooser = selectors.DefaultSelector()
    chooser.register(sock, selectors.EVENT_READ)
    chooser.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in chooser.select():
            if key.fileobj is not sock:
                return
            reader.feed(sock.recv(_READ_BYTES))
            _take(reader, ear)


def _take(reader: hiredis.Reader, ear: Ear) -> None:
    now_ns = time.time_ns()
    payloads: list[bytes] = []
    report_channel = REPORT_CHANNEL.encode()
    while (message := reader.gets()) is not _NOTHING:
        kind, channel, content = message
        if kind == b"subscribe":
            if channel == report_channel:
                _answer({"ready": True})
        elif channel == report_channel:
            ear.hear(payloads, now_ns)
            payloads = []
            _answer(ear.report())
        else:
            payloads.append(content)
    ear.hear(payloads, now_ns)


def _answer(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    listen(sys.argv[1], deaf=sys.argv[2:] == ["deaf"])
