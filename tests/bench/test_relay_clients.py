"""The clients that load the relay count every message, whatever the reads that it comes in."""

from __future__ import annotations

import socket
import time

import msgspec
import pytest

from tests.bench.encodings import ENCODINGS
from tests.bench.relay_clients import Client, Clients, Crowd
from tests.bench.tape import Tape, symbol_names


def _frame(messages: list[dict[str, object]]) -> bytes:
    payload = msgspec.msgpack.encode(messages)
    if len(payload) < 126:
        return bytes([0x82, len(payload)]) + payload
    if len(payload) < 1 << 16:
        return b"\x82\x7e" + len(payload).to_bytes(2, "big") + payload
    return b"\x82\x7f" + len(payload).to_bytes(8, "big") + payload


def _take(clients: Clients, client: Client, data: bytes, size: int) -> int:
    """In reads of a size."""
    count = 0
    for start in range(0, len(data), size):
        read = client.rest + data[start : start + size]
        count += clients.take(client, read, len(read))
    return count


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1 << 20])
def test_counts_messages_of_any_frame_in_any_reads(size: int, sampled: bool) -> None:
    clients = Clients(Crowd(port=0, clients=0))
    client = Client(socket.socket(), b"", sampled=sampled)
    stamp = msgspec.msgpack.Ext(-1, bytes(8))
    quote = {"T": "q", "S": "AAAA", "bp": 1.0, "t": stamp}
    counts = [1, 3, 15, 16, 200, 1]
    if size > 1000:
        counts += [3000, 70_000]
    data = b"".join(_frame([quote] * each) for each in counts)
    pong = b"\x8a\x02hi"
    with client.sock:
        count = _take(clients, client, pong + data + pong, size)
    assert count == sum(counts)
    assert client.count == count
    assert (client.rest, client.skip) == (b"", 0)


def test_sampled_clients_notice_what_is_missing_late_or_out_of_order() -> None:
    clients = Clients(Crowd(port=0, clients=0))
    client = Client(socket.socket(), b"", sampled=True)
    tape = Tape(symbol_names(10), 10, ENCODINGS["msgpack"])
    frames = [tape.next_frames(1, time.time_ns() - 5_000_000) for _ in range(5)]
    with client.sock:
        for number in (0, 1, 3, 3):
            clients.take(client, frames[number], len(frames[number]))
    report = clients.report()
    assert (report["missed"], report["out_of_order"]) == (10, 10)
    assert 5 <= report["p50_ms"] < 5_000
    assert not report["wrong"]


def test_clients_answer_pings_and_report_a_close() -> None:
    clients = Clients(Crowd(port=0, clients=0))
    here, there = socket.socketpair()
    with here, there:
        client = Client(here, b"", sampled=False)
        data = b"\x89\x02hi" + b"\x88\x06\x03\xefgone"
        clients.take(client, data, len(data))
        assert there.recv(100) == b"\x8a\x82\0\0\0\0hi"
    assert clients.report()["wrong"] == ["the other side said: gone"]
