"""The work whose instructions are counted, as a process of one thread.

``python -m tests.bench.counted`` prepares fixed inputs, warms up, then does each task with
:data:`FEW` quotes and with :data:`MANY`. Before and after each it enters ``getppid``, which the
counting tool takes as the sign to write down what it has counted and to start from zero. The tasks are
the pure parts of a quote's way: cut, decode, order, wait, conflate, encode, pack, and a reader's decoding;
and what the relay adds to them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from websockets.client import ClientProtocol
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from mdservice.feed.alpaca.codec import Codec, Encoding, Frame
from mdservice.feed.alpaca.frame_reader import FrameReader
from mdservice.feed.subscriptions import Followed
from mdservice.model.events import RecordBatch
from mdservice.model.feeds import Topic
from mdservice.model.kinds import QUOTES, RecordDecoder
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.model.timestamps import format_ns
from mdservice.publish.conflation import ConflatingBuffer
from mdservice.publish.publisher import MOST_IN_BATCH
from mdservice.publish.store import Events, WriteBatch
from mdservice.redis_io.commands import BatchPacker
from mdservice.relay.messages import messages_of, payload
from mdservice.router.sequencer import Sequencer

FEW, MANY = 1000, 3000
"""Quotes; what is counted for both falls out of the difference."""
_WARM_UPS, _A_FEW = 20, 20
"""The interpreter adapts its instructions to the work after some calls, however long they take."""
_SYMBOLS, _PER_FRAME, _PER_READ = 500, 10, 100
_NOW_NS = 1_780_000_000_000_000_000
_STEP_NS = 1_000_003
"""Between two quotes; odd, so that all nine decimals of their times are used."""
_TOLERANCE_NS = 60_000_000_000

Work = Callable[[], object]
Prepare = Callable[[int], Work]
"""Makes the work on so many quotes; making it is not counted."""


def mark() -> None:
    """End one count, begin the next."""
    os.getppid()


def _quotes(count: int) -> list[Quote]:
    quotes = []
    for index in range(count):
        symbol, cents = f"S{index % _SYMBOLS:03}", 10_000 + index
        event_ns = _NOW_NS + index * _STEP_NS
        quotes.append(
            Quote(symbol, cents / 100, (cents + 3) / 100, 200, 300, event_ns, event_ns, index + 1)
        )
    return quotes


def _decode(encoding: Encoding, *, keep_wire: bool = False) -> Prepare:
    def prepare(count: int) -> Work:
        frames = _frames(encoding, _quotes(count))
        codec = _codec(encoding, keep_wire=keep_wire)
        if len(codec.decode(frames, _NOW_NS).of(QUOTES)) != count:
            raise RuntimeError("not every quote could be decoded")
        return lambda: codec.decode(frames, _NOW_NS)

    return prepare


def _codec(encoding: Encoding, *, keep_wire: bool) -> Codec:
    followed = Followed()
    followed.keep_wire = keep_wire
    followed.ask(Topic(QUOTES.channel, f"S{number:03}") for number in range(_SYMBOLS))
    return Codec(encoding, followed)


def _relay(feed: Encoding, clients: Encoding) -> Prepare:
    """The feed's messages as one frame of the relay."""

    def prepare(count: int) -> Work:
        frames = _frames(feed, _quotes(count))
        quotes = _codec(feed, keep_wire=True).decode(frames, _NOW_NS).of(QUOTES)
        return lambda: payload(messages_of(QUOTES, quotes), clients)

    return prepare


def _frames(encoding: Encoding, quotes: Sequence[Quote]) -> list[Frame]:
    """Websocket messages as Alpaca sends them."""
    messages = [_message(encoding, quote) for quote in quotes]
    groups = [messages[start : start + _PER_FRAME] for start in range(0, len(quotes), _PER_FRAME)]
    if encoding == "json":
        return [msgspec.json.encode(group).decode() for group in groups]
    return [msgspec.msgpack.encode(group) for group in groups]


def _message(encoding: Encoding, quote: Quote) -> dict[str, Any]:
    bid = {"bx": "V", "bp": quote.bid, "bs": quote.bid_size}
    ask = {"ax": "V", "ap": quote.ask, "as": quote.ask_size}
    seconds, nanoseconds = divmod(quote.ts_event_ns, 1_000_000_000)
    time: object = format_ns(quote.ts_event_ns)
    if encoding == "msgpack":
        time = msgspec.msgpack.Ext(-1, (nanoseconds << 34 | seconds).to_bytes(8, "big"))
    return {"T": "q", "S": quote.symbol, **bid, **ask, "c": ["R"], "z": "C", "t": time}


def _reads(count: int) -> list[RecordBatch[Quote]]:
    quotes = _quotes(count)
    starts = range(0, count, _PER_READ)
    return [RecordBatch(QUOTES, quotes[start : start + _PER_READ]) for start in starts]


def _route(count: int) -> Work:
    sequencer, quotes = Sequencer(QUOTES), _quotes(count)
    return lambda: sequencer.route(quotes, quotes[-1].ts_event_ns, _TOLERANCE_NS)


def _wait(count: int) -> Work:
    buffer, reads = ConflatingBuffer(MANY), _reads(count)

    def work() -> None:
        for read in reads:
            buffer.add(read)
        while len(buffer):
            buffer.take(MOST_IN_BATCH)

    return work


def _conflate(count: int) -> Work:
    """Where the backlog is full: an old quote goes with each that comes."""
    buffer, reads = ConflatingBuffer(_SYMBOLS), _reads(count)

    def work() -> None:
        for read in reads:
            buffer.add(read)

    return work


def _encode(count: int) -> Work:
    quotes = _quotes(count)
    return lambda: [encode_quote(quote) for quote in quotes]


def _pack(count: int) -> Work:
    packer = BatchPacker(price_ttl_s=300, event_log=None, event_log_maxlen=0, instance="counted")
    quotes = _quotes(count)
    symbols = [quote.symbol for quote in quotes]
    payloads = [encode_quote(quote) for quote in quotes]
    events = [Events(QUOTES.event, payloads, QUOTES, symbols)]
    batch = WriteBatch(1, {QUOTES: dict(zip(symbols, payloads, strict=True))}, events)
    return lambda: packer.batch(batch)


def _read(count: int) -> Work:
    payloads = [encode_quote(quote) for quote in _quotes(count)]
    decoder = RecordDecoder(QUOTES)
    return lambda: decoder.decode_all(payloads)


def _cut(count: int) -> Work:
    """Messages out of the bytes of some reads of the socket, without the library."""
    protocol = ClientProtocol(parse_uri("ws://feed/"))
    request = protocol.connect()
    protocol.send_request(request)
    reader = FrameReader(protocol, 1 << 20, lambda messages, size: None)
    reader.receive_data(ServerProtocol().accept(Request("/", request.headers)).serialize())
    if protocol.state is not State.OPEN:
        raise RuntimeError("the connection did not open")
    wire = [
        WireFrame(Opcode.BINARY, each).serialize(mask=False)
        for each in _frames("msgpack", _quotes(count))
    ]
    per_read = _PER_READ // _PER_FRAME
    reads = [b"".join(wire[start : start + per_read]) for start in range(0, len(wire), per_read)]

    def work() -> None:
        for read in reads:
            reader.receive_data(read)

    return work


TASKS: dict[str, Prepare] = {
    "cut": _cut,
    "decode, msgpack": _decode("msgpack"),
    "decode, json": _decode("json"),
    "route": _route,
    "wait": _wait,
    "conflate": _conflate,
    "encode": _encode,
    "pack": _pack,
    "decode, reader": _read,
    "decode and keep, msgpack": _decode("msgpack", keep_wire=True),
    "decode and keep, json": _decode("json", keep_wire=True),
    "relay, msgpack": _relay("msgpack", "msgpack"),
    "relay, msgpack to json": _relay("msgpack", "json"),
    "relay, json to msgpack": _relay("json", "msgpack"),
}


def main() -> None:
    """Do all tasks, a mark before and after each."""
    gc.disable()
    for prepare in TASKS.values():
        for _ in range(_WARM_UPS):
            prepare(_A_FEW)()
        prepare(FEW)()
        for count in (FEW, MANY):
            work = prepare(count)
            mark()
            work()
            mark()


if __name__ == "__main__":
    main()
