"""Every stock channel on: for 100 quotes, 15 trades and one bar, into Redis.

``python -m tests.bench mix`` compares the service with program A, an alpaca-py handler that awaits
SET and PUBLISH for each record, at the same mix. It also measures the memory of the service with
10,000 symbols on quotes, trades and bars. Each run checks that every record that the service
accepted was heard once.

The module is also the processes of a run: ``python -m tests.bench.mix feed|listen|handler …``.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import hiredis
import httpx
import msgspec
import numpy as np
import redis.asyncio

from mdservice.model.timestamps import parse_rfc3339
from tests.bench.blaster import AlpacaConnection, Orders, _report, blast
from tests.bench.encodings import Msgpack
from tests.bench.processes import Child, running, usage_of
from tests.bench.runs import Stage
from tests.bench.tape import _frame_head, bid_cents, symbol_names

__all__ = ["MixTape", "measure"]

QUOTES_A_FRAME, TRADES_A_FRAME, BARS_A_FRAME = 100, 15, 1
RECORDS_A_FRAME = QUOTES_A_FRAME + TRADES_A_FRAME + BARS_A_FRAME
CHANNELS = ("quotes", "trades", "bars")
EVENTS = ("price.updated", "trade.updated", "bar.updated")
_SLOT_S = 0.05
_REPORT = "bench.report"
_NOTHING = object()
_TIMESTAMP_64 = b"\xd7\xff"
_SHIFT, _SECOND_NS = 34, 1_000_000_000
_READY_LIMIT_S, _SETTLE_S = 20.0, 20.0
_ROUNDS = 3
_SYMBOLS, _MANY_SYMBOLS = 500, 10_000


# What is sent


def _message(fields: dict[str, Any], patched: tuple[str, ...]) -> tuple[bytes, dict[str, int]]:
    """A message with a time at its end, and where the values of some fields are."""
    data = bytes([0x80 | len(fields) + 1])
    places = {}
    for name, value in fields.items():
        data += msgspec.msgpack.encode(name)
        packed = msgspec.msgpack.encode(value)
        if name in patched:
            places[name] = len(data) + 1
        data += packed
    data += msgspec.msgpack.encode("t") + _TIMESTAMP_64
    places["t"] = len(data)
    return data + bytes(8), places


_BIG_ID = 1 << 40
"""So large that it takes eight bytes from the first id on."""


def _quote(symbol: str) -> tuple[bytes, dict[str, int]]:
    sides = {"bx": "V", "bp": 1.0, "bs": 200, "ax": "V", "ap": 1.0, "as": 300}
    return _message({"T": "q", "S": symbol, **sides, "c": ["R"], "z": "C"}, ("bp", "ap"))


def _trade(symbol: str) -> tuple[bytes, dict[str, int]]:
    fields = {"T": "t", "i": _BIG_ID, "S": symbol, "x": "V", "p": 1.0, "s": 100}
    return _message({**fields, "c": ["@"], "z": "C"}, ("i", "p"))


def _bar(symbol: str) -> tuple[bytes, dict[str, int]]:
    prices = {"o": 1.0, "h": 900.0, "l": 0.5, "c": 1.0, "v": 4000, "n": 42, "vw": 1.0}
    return _message({"T": "b", "S": symbol, **prices}, ("c", "vw"))


class MixTape:
    """The endless sequence of frames, with the attributes that :func:`blast` needs.

    Args:
        symbols: As many as fill whole frames of quotes. Each cycle quotes every symbol once, and
            brings trades and bars of the first symbols of each frame.
    """

    def __init__(self, symbols: list[str]) -> None:
        self.per_frame = RECORDS_A_FRAME
        self.frames_in_cycle = len(symbols) // QUOTES_A_FRAME
        self.frames_sent = 0
        parts = {
            "quotes": (_quote, QUOTES_A_FRAME, {"bp": ">f8", "ap": ">f8", "t": ">u8"}),
            "trades": (_trade, TRADES_A_FRAME, {"i": ">u8", "p": ">f8", "t": ">u8"}),
            "bars": (_bar, BARS_A_FRAME, {"c": ">f8", "vw": ">f8", "t": ">u8"}),
        }
        opening = Msgpack().opening(RECORDS_A_FRAME)
        payloads, layout, offset = [], {}, len(opening)
        for name, (encode, count, formats) in parts.items():
            data, places = encode(symbols[0])
            kind = np.dtype(
                {
                    "names": list(formats),
                    "formats": list(formats.values()),
                    "offsets": [places[field] for field in formats],
                    "itemsize": len(data),
                }
            )
            layout[name] = (kind, (count,)), offset
            offset += count * len(data)
        for start in range(0, len(symbols), QUOTES_A_FRAME):
            of_frame = symbols[start : start + QUOTES_A_FRAME]
            payloads.append(
                opening
                + b"".join(
                    encode(symbol)[0]
                    for encode, count, _ in parts.values()
                    for symbol in of_frame[:count]
                )
            )
        head = _frame_head(Msgpack.frame_byte, len(payloads[0]))
        self.frame_bytes = len(head) + len(payloads[0])
        self._buffer = bytearray(b"".join(head + payload for payload in payloads))
        frame = np.dtype(
            {
                "names": list(layout),
                "formats": [kind for kind, _ in layout.values()],
                "offsets": [len(head) + place for _, place in layout.values()],
                "itemsize": self.frame_bytes,
            }
        )
        self._frames = np.frombuffer(self._buffer, dtype=frame)

    def next_frames(self, most: int, now_ns: int) -> bytes:
        """The next frames, at most this many and not beyond the cycle's end, stamped."""
        cycle, first = divmod(self.frames_sent, self.frames_in_cycle)
        last = min(first + most, self.frames_in_cycle)
        cents = bid_cents(0, cycle)
        seconds, nanoseconds = divmod(now_ns, _SECOND_NS)
        stamp = nanoseconds << _SHIFT | seconds
        frames = self._frames[first:last]
        frames["quotes"]["bp"] = cents / 100
        frames["quotes"]["ap"] = (cents + 2) / 100
        frames["quotes"]["t"] = stamp
        frames["trades"]["p"] = (cents + 1) / 100
        frames["trades"]["i"] = _BIG_ID + cycle
        frames["trades"]["t"] = stamp
        frames["bars"]["c"] = cents / 100
        frames["bars"]["vw"] = cents / 100
        frames["bars"]["t"] = seconds - seconds % 60
        self.frames_sent += last - first
        return bytes(memoryview(self._buffer)[first * self.frame_bytes : last * self.frame_bytes])


class _Connection(AlpacaConnection):
    """Answers requests for all channels."""

    def _take(self, message: dict[str, Any]) -> None:
        if message["action"] == "auth":
            self._say({"T": "success", "msg": "authenticated"})
            return
        self._lists: dict[str, set[str]] = getattr(self, "_lists", {c: set() for c in CHANNELS})
        for channel in CHANNELS:
            self._lists[channel].update(message.get(channel, ()))
        state = {channel: sorted(names) for channel, names in self._lists.items()}
        self._say({"T": "subscription", **state})
        if all(names >= self._symbols for names in self._lists.values()):
            self.subscribed.set()


async def _feed(count: int) -> None:
    """Serve one client; every line of the input is one blast."""
    symbols = symbol_names(count)
    connections: asyncio.Queue[_Connection] = asyncio.Queue()

    def connect() -> _Connection:
        connection = _Connection(symbols, Msgpack())
        connections.put_nowait(connection)
        return connection

    loop = asyncio.get_running_loop()
    server = await loop.create_server(connect, "127.0.0.1", 0)
    _report({"port": server.sockets[0].getsockname()[1]})
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    orders = Orders(lines)
    reading = asyncio.create_task(orders.read())
    tape: Any = MixTape(symbols)
    connection = await connections.get()
    await connection.subscribed.wait()
    _report({"subscribed": count})
    while order := await orders.next():
        _report(await blast(connection, tape, orders, order["rate"], order["seconds"]))
    await reading


# Who listens


class _Stamp(msgspec.Struct, gc=False):
    timestamp: str


def _listen(path: str) -> None:
    """Count the events of every channel; report when asked to over Redis."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.sendall(f"SUBSCRIBE {' '.join(EVENTS)} {_REPORT}\r\n".encode())
    reader = hiredis.Reader(notEnoughData=_NOTHING)
    counts: Counter[str] = Counter()
    slots: Counter[int] = Counter()
    latencies_ms: list[float] = []
    decode = msgspec.json.Decoder(_Stamp).decode
    chooser = selectors.DefaultSelector()
    chooser.register(sock, selectors.EVENT_READ)
    chooser.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in chooser.select():
            if key.fileobj is not sock:
                return
            reader.feed(sock.recv(262_144))
            now_ns, slot = time.time_ns(), int(time.monotonic() / _SLOT_S)
            while (message := reader.gets()) is not _NOTHING:
                kind, channel, content = message
                if kind == b"subscribe":
                    if channel == _REPORT.encode():
                        _report({"ready": True})
                elif channel == _REPORT.encode():
                    ordered = sorted(latencies_ms)
                    last = len(ordered) - 1
                    _report(
                        {
                            "counts": counts,
                            "slots": sorted(slots.items()),
                            "p50_ms": ordered[last // 2] if ordered else None,
                            "p99_ms": ordered[last * 99 // 100] if ordered else None,
                        }
                    )
                    slots.clear()
                    latencies_ms.clear()
                else:
                    name = channel.decode()
                    counts[name] += 1
                    slots[slot] += 1
                    if name == EVENTS[1]:  # trades: enough to know the latency of all
                        stamp = parse_rfc3339(decode(content).timestamp)
                        latencies_ms.append((now_ns - stamp) / 1e6)


# Program A


def _handler(feed_url: str, redis_url: str, names: str) -> None:
    """What users write: await SET and PUBLISH for each quote, trade and bar."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from alpaca.data.live import StockDataStream
    store = redis.asyncio.from_url(redis_url)
    stream = StockDataStream("key", "secret", url_override=feed_url)

    def handler(prefix: str, event: str, ttl_s: int) -> Any:
        async def handle(record: Any) -> None:
            fields = {**record.model_dump(), "timestamp": record.timestamp.isoformat()}
            payload = json.dumps(fields, default=str)
            await store.set(f"{prefix}:{record.symbol}", payload, ex=ttl_s)
            await store.publish(event, payload)

        return handle

    symbols = names.split(",")
    stream.subscribe_quotes(handler("price", EVENTS[0], 300), *symbols)
    stream.subscribe_trades(handler("trade", EVENTS[1], 300), *symbols)
    stream.subscribe_bars(handler("bar", EVENTS[2], 86_400), *symbols)
    stream.run()


# A run


@attrs.frozen
class Result:
    """What became of one load.

    Attributes:
        sent_per_s: Records that the program took from its socket, per second.
        heard_per_s: Events heard per second while the load lasted.
        lost: Records that the program conflated or dropped, by its own count.
        p50_ms, p99_ms: From a trade's time to its event.
        wrong: What is not as it must be.
    """

    sent_per_s: float
    heard_per_s: float
    lost: int
    p50_ms: float | None
    p99_ms: float | None
    wrong: str


class _Run:
    """A program between feed, server and listener."""

    def __init__(
        self, stage: Stage, feed: Child, listener: Child, child: Child, api: Path | None
    ) -> None:
        self._stage = stage
        self._feed = feed
        self._listener = listener
        self._api = api
        self.child = child
        self._frames = 0

    def apply(self, rate: float, seconds: float) -> Result:
        """Put a load on the program; wait until all is through."""
        before, heard_before = self._counters(), self._heard()
        self._feed.tell({"rate": rate, "seconds": seconds})
        sent = self._feed.hear(seconds + _SETTLE_S)
        after = self._settled(sent["frames_in_all"])
        report = self._heard()
        first, last = int((sent["started"] + 0.5) / _SLOT_S) + 1, int(sent["ended"] / _SLOT_S)
        inside = sum(count for slot, count in report["slots"] if first <= slot < last)
        heard = sum(report["counts"].values()) - sum(heard_before["counts"].values())
        lost, wrong = 0, ""
        if after is not None and before is not None:
            change = {name: after[name] - before[name] for name in after}
            lost = change["events_conflated"] + change["trades_dropped"]
            records = sent["sent"]
            if change["events_published"] != heard or heard + lost != records:
                wrong = f"{records} sent, {heard} heard, {change}"
        return Result(
            sent["sent"] / (sent["ended"] - sent["started"]),
            inside / (max(1, last - first) * _SLOT_S),
            lost,
            report["p50_ms"],
            report["p99_ms"],
            wrong,
        )

    def _heard(self) -> dict[str, Any]:
        self._stage.store.publish(_REPORT, b"")
        return self._listener.hear(_SETTLE_S)

    def _counters(self) -> dict[str, int] | None:
        if self._api is None:
            return None
        transport = httpx.HTTPTransport(uds=str(self._api))
        deadline = time.monotonic() + _READY_LIMIT_S
        with httpx.Client(transport=transport, timeout=5) as client:
            while True:
                status = client.get("http://service/status").json()
                if status["state"] == "running":
                    counters: dict[str, int] = status["counters"]
                    return counters
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the service is not ready: {status['reasons']}")
                time.sleep(0.02)

    def _settled(self, frames: int) -> dict[str, int] | None:
        """The counters once every quote that was sent is accepted and written."""
        if self._api is None:
            return None
        deadline = time.monotonic() + _SETTLE_S
        while True:
            counters = self._counters()
            assert counters is not None
            out = counters["events_published"] + counters["events_conflated"]
            out += counters["trades_dropped"]
            if out >= frames * RECORDS_A_FRAME or time.monotonic() > deadline:
                time.sleep(0.1)
                return self._counters()
            time.sleep(0.02)


@contextmanager
def _running(stage: Stage, folder: Path, *, service: bool, symbols: int) -> Iterator[_Run]:
    stage.store.flushall()
    folder.mkdir(exist_ok=True)
    names = symbol_names(symbols)
    other = partial(running, core=stage.cores.others, others_core=stage.cores.others)
    with ExitStack() as stack:
        start = stack.enter_context
        feed = start(other("tests.bench.mix", "feed", str(symbols), log=folder / "feed.log"))
        port = feed.hear(_READY_LIMIT_S)["port"]
        listen = ("tests.bench.mix", "listen", str(stage.redis_path))
        listener = start(other(*listen, log=folder / "listener.log"))
        listener.hear(_READY_LIMIT_S)
        feed_url, redis_url = f"ws://127.0.0.1:{port}", f"unix://{stage.redis_path}"
        cores = {"core": stage.cores.program, "others_core": stage.cores.others}
        api = folder / "api.sock" if service else None
        if service:
            environment = {
                "ALPACA_API_KEY": "key",
                "ALPACA_SECRET_KEY": "secret",
                "MDSERVICE_FEED": "sip",
                "MDSERVICE_FEED_URL": feed_url,
                "MDSERVICE_REDIS_URL": redis_url,
                "MDSERVICE_DRIVER": "websockets",
                "MDSERVICE_SYMBOLS": ",".join(names),
                "MDSERVICE_CHANNELS": ",".join(CHANNELS),
                "MDSERVICE_SOCKET": str(api),
                "MDSERVICE_LOG_FORMAT": "json",
            }
            log = folder / "mdservice.log"
            child = start(running("mdservice", "run", log=log, environment=environment, **cores))
        else:
            arguments = ("handler", feed_url, redis_url, ",".join(names))
            log = folder / "handler.log"
            child = start(running("tests.bench.mix", *arguments, log=log, **cores))
        try:
            feed.hear(2 * _READY_LIMIT_S)
            yield _Run(stage, feed, listener, child, api)
        except Exception as exc:
            exc.add_note(f"it logged at last:\n{child.last_words()}")
            raise


def measure(stage: Stage, folder: Path, say: Any) -> int:
    """Compare the service with A at the mix; returns 1 where something was not as it must be."""
    wrong = []

    def told(name: str, result: Result) -> Result:
        p50, p99 = (
            f"{ms:,.2f}" if ms is not None else "-" for ms in (result.p50_ms, result.p99_ms)
        )
        say(
            f"{name:36}: {result.sent_per_s:>9,.0f}/s in, {result.heard_per_s:>9,.0f}/s out, "
            f"{result.lost:,} conflated or dropped, latency of trades {p50} / {p99} ms"
            f"{', WRONG ' + result.wrong if result.wrong else ''}"
        )
        if result.wrong:
            wrong.append(result.wrong)
        return result

    plain, floods, paced, every = [], [], [], []
    for number in range(_ROUNDS):
        one = partial(_running, stage, symbols=_SYMBOLS)
        with one(folder / f"a{number}", service=False) as run:
            plain.append(told("A, flood", run.apply(0, 2)).heard_per_s)
        with one(folder / f"service{number}", service=True) as run:
            paced.append(told("service, 10,000/s", run.apply(10_000, 2)))
            floods.append(told("service, flood", run.apply(0, 2)).heard_per_s)
            rate = floods[-1] * 1.1
            while rate > 20_000:
                kept = told(f"service, {rate:,.0f}/s", run.apply(rate, 6 if number else 10))
                if not kept.lost and kept.heard_per_s > 0.97 * rate:
                    every.append(kept.heard_per_s)
                    break
                rate *= 0.93
    with _running(stage, folder / "many", service=True, symbols=_MANY_SYMBOLS) as run:
        told("service, 10,000 symbols, 20,000/s", run.apply(20_000, 8))
        memory_mb = usage_of(run.child.pid).rss_mb
    a = median(plain)
    say(
        f"\nevery record: {median(every):,.0f}/s, {median(every) / a:.1f} times A ({a:,.0f}/s); "
        f"flood {median(floods):,.0f}/s, {median(floods) / a:.1f} times A"
    )
    p50, p99 = (median(getattr(one, name) for one in paced) for name in ("p50_ms", "p99_ms"))
    say(f"latency at 10,000 records/s: {p50:.2f} ms p50, {p99:.2f} ms p99")
    say(f"memory with 10,000 symbols on quotes, trades and bars: {memory_mb:.0f} MB")
    return 1 if wrong else 0


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "feed":
        asyncio.run(_feed(int(arguments[0])))
    elif role == "listen":
        _listen(arguments[0])
    else:
        _handler(*arguments)
