"""Many readers, as a process: subscribers of ``price.updated`` that read and do nothing else.

``python -m tests.bench.readers REDIS_SOCKET COUNT`` prints ``{"ready": true}`` when all have
subscribed. It ends with its input. Further arguments are shard channels, in place of
``price.updated``.
"""

from __future__ import annotations

import selectors
import socket
import sys
from collections.abc import Sequence

from mdservice.redis_io.names import PRICE_CHANNEL

_READ_BYTES = 262_144
_SUBSCRIBE = f"SUBSCRIBE {PRICE_CHANNEL}\r\n".encode()


def read(path: str, count: int, shards: Sequence[str] = ()) -> None:
    """Subscribe with some connections, then read from all of them until the input ends."""
    chooser = selectors.DefaultSelector()
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        # One command for each channel, and so one confirmation.
        for command in [f"SSUBSCRIBE {shard}\r\n".encode() for shard in shards] or [_SUBSCRIBE]:
            sock.sendall(command)
            sock.recv(_READ_BYTES)
        chooser.register(sock, selectors.EVENT_READ)
    chooser.register(sys.stdin, selectors.EVENT_READ)
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    buffer = bytearray(_READ_BYTES)
    while True:
        for key, _ in chooser.select():
            if not isinstance(key.fileobj, socket.socket):
                return
            key.fileobj.recv_into(buffer)


if __name__ == "__main__":
    read(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
