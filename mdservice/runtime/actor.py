"""The base class of actors, their channels and heartbeats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Generic, Protocol, Self, TypeVar

import anyio
import attrs
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from anyio.streams.memory import (
    MemoryObjectReceiveStream,
    MemoryObjectSendStream,
    MemoryObjectStreamStatistics,
)

from mdservice.clock import Clock

__all__ = ["BEAT_S", "Actor", "Answer", "Channel", "Heartbeat", "Inbox", "Outbox"]

T = TypeVar("T")

BEAT_S = 1.0
"""Seconds between the heartbeats of a waiting loop."""


class Actor(Protocol):
    """One role of the service.

    Its constructor starts no task and opens nothing. ``run`` may be called again after it failed,
    so state that must survive a failure lives on the object. ``run`` returns once the inbox has
    ended and everything was sent; returning earlier is an error.
    """

    @property
    def name(self) -> str:
        """The role, as in the status."""
        ...

    @property
    def heartbeat(self) -> Heartbeat:
        """Its heartbeat."""
        ...

    @property
    def depth(self) -> Depth:
        """The number of items in its inbox."""
        ...

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Do the work until the inbox ends; call ``task_status.started()`` when ready."""
        ...


class Heartbeat:
    """When each loop of an actor last ran.

    A loop beats at least every second while it waits for its inbox, or for room in the next
    actor's: if that one stalls, a restart of this one helps nothing. A loop that waits for the
    outside world, such as a socket, rests instead: its silence is normal.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._beats: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Forget all loops: the actor starts again."""
        self._beats = {"main": self._clock.monotonic()}

    def beat(self, loop: str = "main") -> None:
        """Record that the loop runs."""
        self._beats[loop] = self._clock.monotonic()

    def rest(self, loop: str = "main") -> None:
        """Record that the loop waits for the outside; it counts as alive until its next beat."""
        self._beats.pop(loop, None)

    def age_s(self) -> float:
        """Seconds since the slowest loop's last beat; 0 where all rest."""
        if not self._beats:
            return 0.0
        return max(0.0, self._clock.monotonic() - min(self._beats.values()))


@attrs.frozen
class Depth:
    """The number of items in an inbox, and its size."""

    used: int
    size: int


class _Room:
    """Wakes the senders that wait for room in a channel."""

    def __init__(self) -> None:
        self._waiting: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait until an item is received, or the channel is closed."""
        if self._waiting is None:
            self._waiting = anyio.Event()
        await self._waiting.wait()

    def freed(self) -> None:
        """Let the waiting senders try again."""
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None


class Outbox(Generic[T]):
    """The sending end of a channel.

    A cancelled call has sent nothing, so a sender that keeps its items across a restart sends each
    one once. The stream's own ``send`` does not promise that: it offers the item while it waits, so
    the receiver may take it in the turn of the event loop in which the sender is cancelled.
    :meth:`send` waits for room instead, and then adds the item without waiting.

    Args:
        stream: The stream of the items.
        room: Wakes this end when an item was received.
    """

    def __init__(self, stream: MemoryObjectSendStream[T], room: _Room) -> None:
        self._stream = stream
        self._room = room

    def send_nowait(self, item: T) -> None:
        """Send an item.

        Raises:
            anyio.WouldBlock: The channel is full.
            anyio.ClosedResourceError: The channel is closed.
        """
        self._stream.send_nowait(item)

    async def send(self, item: T, heartbeat: Heartbeat | None = None) -> None:
        """Send an item, at once if there is room, otherwise as soon as there is.

        With room, no other task runs meanwhile. So a loop that calls it must wait elsewhere, as a
        receiver does. If it is cancelled, the item was not sent.

        Args:
            item: The item.
            heartbeat: Gets a beat every :data:`BEAT_S` seconds of the wait.

        Raises:
            anyio.ClosedResourceError: The channel is closed.
        """
        while True:
            with suppress(anyio.WouldBlock):
                return self._stream.send_nowait(item)
            if heartbeat is None:
                await self._room.wait()
                continue
            with anyio.move_on_after(BEAT_S):
                await self._room.wait()
            heartbeat.beat()

    def clone(self) -> Outbox[T]:
        """Another sending end; the inbox ends when all of them are closed."""
        return Outbox(self._stream.clone(), self._room)

    def close(self) -> None:
        """Close this end: the inbox ends after the items that are in the channel."""
        self._stream.close()
        self._room.freed()


class Inbox(AsyncIterator[T]):
    """The receiving end of a channel, for one loop of one actor.

    Args:
        stream: The stream of the items.
        room: Wakes the senders when an item was received.
        size: The maximum number of items.
        heartbeat: Gets a beat on every item, and every :data:`BEAT_S` seconds without one.
        loop: The name of the loop that reads.
    """

    def __init__(
        self,
        stream: MemoryObjectReceiveStream[T],
        room: _Room,
        size: int,
        heartbeat: Heartbeat,
        loop: str = "main",
    ) -> None:
        self._stream = stream
        self._room = room
        self._size = size
        self._heartbeat = heartbeat
        self._loop = loop

    @property
    def depth(self) -> Depth:
        """The number of items in it."""
        return Depth(self._stream.statistics().current_buffer_used, self._size)

    async def receive(self) -> T:
        """The next item.

        Raises:
            anyio.EndOfStream: The senders are done, and every item was received.
        """
        self._heartbeat.beat(self._loop)
        await checkpoint()
        with suppress(anyio.WouldBlock):  # most often something waits: no time limit is needed
            return self._take()
        while True:
            with anyio.move_on_after(BEAT_S):
                return await self._wait()
            self._heartbeat.beat(self._loop)

    def _take(self) -> T:
        item = self._stream.receive_nowait()
        self._room.freed()
        return item

    async def _wait(self) -> T:
        item = await self._stream.receive()
        self._room.freed()
        return item

    async def receive_within(self, seconds: float) -> T | None:
        """The next item, or None if none came in time.

        Raises:
            anyio.EndOfStream: The senders are done, and every item was received.
        """
        self._heartbeat.beat(self._loop)
        with anyio.move_on_after(seconds):
            return await self._wait()
        return None

    def take_waiting(self) -> Iterator[T]:
        """The items that already wait, without waiting for more."""
        with suppress(anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
            while True:
                yield self._take()

    def rest(self) -> None:
        """Record that the loop works on something outside; it counts as alive meanwhile."""
        self._heartbeat.rest(self._loop)

    # Not a generator: a loop that is cancelled in its body would leave it unfinished.

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


class Channel(Generic[T]):
    """A bounded memory channel between two actors.

    Args:
        size: How many items may wait, at least one.

    Attributes:
        outbox: The sending end.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a channel must have room for an item, not {size}")
        self.size = size
        self._room = _Room()
        sending, self._receiving = anyio.create_memory_object_stream[T](size)
        self.outbox = Outbox(sending, self._room)

    def inbox(self, heartbeat: Heartbeat, loop: str = "main") -> Inbox[T]:
        """The receiving end."""
        return Inbox(self._receiving, self._room, self.size, heartbeat, loop)

    def statistics(self) -> MemoryObjectStreamStatistics:
        """The number of items in it, and of its open ends."""
        return self._receiving.statistics()

    def close(self) -> None:
        """Close both ends; items that still wait are lost."""
        self.outbox.close()
        self._receiving.close()


class Answer(Generic[T]):
    """A value that one task passes to another, once."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._value: T | None = None
        self._error: Exception | None = None

    @property
    def given(self) -> bool:
        """Whether there is an answer."""
        return self._event.is_set()

    def give(self, value: T) -> None:
        """Answer; further answers are ignored."""
        if not self._event.is_set():
            self._value = value
            self._event.set()

    def fail(self, error: Exception) -> None:
        """Answer with an error, raised by :meth:`wait`."""
        if not self._event.is_set():
            self._error = error
            self._event.set()

    async def wait(self) -> T:
        """The value.

        Raises:
            Exception: The error passed to :meth:`fail`.
        """
        await self._event.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # given before the event is set
