"""A network between a client and a server of this machine that can be cut, taken away and frozen."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

_LINGER_NONE = struct.pack("ii", 1, 0)
_READ_BYTES = 65_536
_LIMIT_S = 20.0


class Network:
    """A proxy in a thread of its own.

    Its methods return at once: what they ask for is done a moment later, in order.

    Args:
        target: A port on loopback, or the path of a UNIX socket.
    """

    def __init__(self, target: int | Path) -> None:
        self._target = target
        self._chooser = selectors.DefaultSelector()
        self._lines: dict[socket.socket, socket.socket] = {}
        self._servers: set[socket.socket] = set()
        self._swallowed: set[socket.socket] = set()
        self._frozen: list[socket.socket] = []
        self._held: list[socket.socket] = []
        self._filler: socket.socket | None = None
        """The one connection that fills the queue of a listener that does not answer."""
        self._commands: deque[Callable[[], object]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._chooser.register(self._woken, selectors.EVENT_READ)
        self._running = True
        self._listener: socket.socket | None = None
        # Bound and not listening: while the network is away nobody else gets the port.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self._listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def lead_to(self, target: int | Path) -> None:
        """Lead new connections to another server; those of now stay."""
        self._target = target

    def reset(self) -> None:
        """Cut every connection: both ends get a RST and nothing else."""
        self._ask(self._reset)

    def refuse(self) -> None:
        """Refuse new connections; those of now work."""
        self._ask(self._stop_listening)

    def hang(self) -> None:
        """Answer no request for a connection, not even with a refusal; those of now work."""
        self._ask(self._stop_answering)

    def down(self) -> None:
        """Cut every connection, and refuse new ones."""
        self.refuse()
        self.reset()

    def hold(self, *, answers_only: bool = False) -> None:
        """Hold what comes on the connections of now until :meth:`up`, in one direction or in both.

        They stay open, and an end that is closed is held too.
        """
        self._ask(lambda: self._hold(self._servers if answers_only else self._lines))

    def up(self) -> None:
        """Pass on what was held, and take new connections again."""
        self._ask(self._release)
        self._ask(self._listen)

    def freeze(self) -> None:
        """Pass on nothing more of the connections of now, which stay open; new ones work."""
        self._ask(self._freeze)

    def swallow_answers(self) -> None:
        """Of the connections of now pass on what clients say, and nothing that servers answer."""
        self._ask(lambda: self._swallowed.update(self._servers))

    def close(self) -> None:
        """End it, with all that passes through it."""
        self._ask(partial(setattr, self, "_running", False))
        self._thread.join(_LIMIT_S)
        assert not self._thread.is_alive()

    # In its thread

    def _ask(self, command: Callable[[], object]) -> None:
        self._commands.append(command)
        self._waker.send(b"x")

    def _run(self) -> None:
        while self._running:
            for key, _ in self._chooser.select():
                if key.fileobj is self._woken:
                    self._woken.recv(_READ_BYTES)
                elif key.fileobj is self._listener:
                    self._accept(self._listener)
                elif key.fileobj in self._lines:
                    self._pass_on(key.fileobj)
            while self._commands:
                self._commands.popleft()()
        self._stop_listening()
        self._reset()
        for end in (*self._frozen, self._place, self._waker, self._woken):
            end.close()
        self._chooser.close()

    def _listen(self) -> None:
        self._stop_listening()  # with the queue of a listener that did not answer
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
        self._chooser.register(self._listener, selectors.EVENT_READ)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            if self._filler is None:
                self._chooser.unregister(self._listener)
            else:
                self._filler.close()
                self._filler = None
            self._listener.close()
            self._listener = None

    def _stop_answering(self) -> None:
        """Fill the listener's queue, after which the kernel drops each request to connect."""
        listener = self._listener
        if listener is not None and self._filler is None:
            self._chooser.unregister(listener)
            listener.listen(0)
            self._filler = socket.socket()
            self._filler.setblocking(False)
            self._filler.connect_ex(("127.0.0.1", self.port))

    def _hold(self, ends: Iterable[socket.socket]) -> None:
        for end in ends:
            if end not in self._held:
                self._held.append(end)
                self._chooser.unregister(end)

    def _release(self) -> None:
        # Clients come first: what they have said is passed on before a server's end shows.
        held, self._held = self._held, []
        for end in held:
            self._chooser.register(end, selectors.EVENT_READ)

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        try:
            server = self._connect()
        except OSError:
            client.close()
            return
        self._servers.add(server)
        for end, other in ((client, server), (server, client)):
            end.settimeout(_LIMIT_S)
            self._lines[end] = other
            self._chooser.register(end, selectors.EVENT_READ)

    def _connect(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target), _LIMIT_S)
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._target))
        return server

    def _pass_on(self, source: socket.socket) -> None:
        try:
            data = source.recv(_READ_BYTES)
            if data:
                if source not in self._swallowed:
                    self._lines[source].sendall(data)
                return
        except OSError:
            pass
        for end in (source, self._lines[source]):
            self._forget(end)
            end.close()

    def _reset(self) -> None:
        for end in list(self._lines):
            self._forget(end)
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            end.close()

    def _freeze(self) -> None:
        for end in list(self._lines):
            self._forget(end)
            self._frozen.append(end)

    def _forget(self, end: socket.socket) -> None:
        del self._lines[end]
        self._servers.discard(end)
        self._swallowed.discard(end)
        if end in self._held:
            self._held.remove(end)
        else:
            self._chooser.unregister(end)
