"""A plain server on loopback that shows what a feed driver does on the wire."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import anyio
import msgspec
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tests.integration.conftest import patient

LIMIT_S = 20.0
CLOSED_S = 2.0
"""Within which a close is over on a busy machine."""
Moment = Literal["upgrade", "welcome", "auth", "subscribe"]


class Line:
    """One connection of a plain server: its own thread, and a second one that floods.

    Attributes:
        heard: What the client asked for, in order: ``auth``, ``subscribe``.
        left_by: The code of the close frame that came, or None.
        over: Set once the client has ended the connection.
    """

    def __init__(
        self,
        line: socket.socket,
        silent_at: Moment | None,
        flood: bool,
        slow: Mapping[Moment, float],
    ) -> None:
        self.heard: list[str] = []
        self.left_by: int | None = None
        self.over = threading.Event()
        self.reading = threading.Event()
        self.reading.set()
        self._line = line
        self._silent_at = silent_at
        self._flood = flood
        self._slow = slow
        self._protocol = ServerProtocol()
        self._writing = threading.Lock()

    def serve(self) -> None:
        with self._line, suppress(OSError):
            while not self.over.is_set():
                self.reading.wait(LIMIT_S)
                data = self._line.recv(65_536)
                if not data:
                    break
                self._protocol.receive_data(data)
                for event in self._protocol.events_received():
                    self._take(event)
                self._flush()
        self.over.set()

    def _take(self, event: Any) -> None:
        if isinstance(event, Request):
            time.sleep(self._slow.get("upgrade", 0.0))
            self._protocol.send_response(self._protocol.accept(event))
            self._flush()
            self._answer("welcome", {"T": "success", "msg": "connected"})
        elif event.opcode is Opcode.CLOSE:
            self.left_by = int.from_bytes(event.data[:2], "big")
        elif event.opcode in (Opcode.BINARY, Opcode.TEXT):
            self._asked(msgspec.msgpack.decode(event.data))

    def _asked(self, message: dict[str, Any]) -> None:
        self.heard.append(message["action"])
        if message["action"] == "auth":
            self._answer("auth", {"T": "success", "msg": "authenticated"})
        elif message["action"] == "subscribe":
            self._answer("subscribe", {"T": "subscription", "quotes": message["quotes"]})
            if self._flood:
                self._flush()
                threading.Thread(target=self._send_quotes, daemon=True).start()

    def _answer(self, moment: Moment, message: dict[str, Any]) -> None:
        time.sleep(self._slow.get(moment, 0.0))
        if self._silent_at != moment:
            with suppress(InvalidState):  # the client's close came in the same read as its request
                self._protocol.send_binary(msgspec.msgpack.encode([message]))

    def _flush(self) -> None:
        with self._writing:
            for data in self._protocol.data_to_send():
                if data:
                    self._line.sendall(data)

    def _send_quotes(self) -> None:
        quote = {"T": "q", "S": "AAPL", "bp": 1.0, "ap": 2.0, "bs": 1, "as": 1}
        quote |= {"t": msgspec.msgpack.Ext(-1, int(time.time()).to_bytes(4, "big"))}
        frame = Frame(Opcode.BINARY, msgspec.msgpack.encode([quote] * 50)).serialize(mask=False)
        with suppress(OSError):
            while not self.over.is_set() and self.left_by is None:
                with self._writing:
                    self._line.sendall(frame * 20)


class PlainServer:
    """Listens on loopback, speaks as much of Alpaca's protocol as a login and a subscription.

    Args:
        silent_at: From this moment on it never answers.
        flood: After a subscription it sends quotes without end.
        slow: How long it waits before an answer, seconds.
    """

    def __init__(
        self,
        silent_at: Moment | None = None,
        *,
        flood: bool = False,
        slow: Mapping[Moment, float] | None = None,
    ) -> None:
        self.lines: list[Line] = []
        self._make = partial(Line, silent_at=silent_at, flood=flood, slow=slow or {})
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/v2/iex"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self._listener.close()
        for line in self.lines:
            line.over.set()
            line.reading.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                line = self._make(self._listener.accept()[0])
                self.lines.append(line)
                threading.Thread(target=line.serve, daemon=True).start()

    async def until(self, condition: Callable[[Line], Any]) -> Line:
        """Wait until the condition holds for the first connection."""
        with anyio.fail_after(patient(LIMIT_S)):
            while not (self.lines and condition(self.lines[0])):
                await anyio.sleep(0.005)
        return self.lines[0]

    def assert_left(self, number: int = 0) -> None:
        line = self.lines[number]
        assert line.over.wait(LIMIT_S), "the connection is still open"
        assert line.left_by == CloseCode.NORMAL_CLOSURE, "no close frame came"
