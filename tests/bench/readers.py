"""Many readers, as a process: subscribers of ``price.updated`` that read and do nothing else.

``python -m tests.bench.readers REDIS_SOCKET COUNT`` prints ``{"ready": true}`` when all have
subscribed. It ends with its input.
"""

from __future__ import annotations

import selectors
import socket
import sys

from mdservice.redis_io.names import PRICE_CHANNEL

_READ_BYTES = 262_144
_SUBSCRIBE = f"SUBSCRIBE {PRICE_CHANNEL}\r\n".encode()


def read(path: str, count: int) -> None:
    """Subscribe with some connections, then read from all of them until the input ends."""
    chooser = selectors.DefaultSelector()
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.sendall(_SUBSCRIBE)
        sock.recv(_READ_BYTES)  # the confirmation
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
    read(sys.argv[1], int(sys.argv[2]))
