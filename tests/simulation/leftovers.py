"""Nothing is left of a service that has ended: no task, thread, connection or open stream."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import anyio
import trio

from mdservice.simulator import MemoryByteStream, Simulator

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import World

_HANGING_UP_S = 2.0
"""How long the other side may need to notice that a client is gone."""


def _descendants(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    waiting = deque([task])
    while waiting:
        for nursery in waiting.popleft().child_nurseries:
            for child in nursery.child_tasks:
                waiting.append(child)
                yield child


class Leftovers:
    """Counts what a service has open."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._streams: list[MemoryByteStream] = []
        self._keeper: trio.lowlevel.Task | None = None
        self._tasks = 0
        self._system_tasks = 0
        self._threads: set[threading.Thread] = set()
        self.connect: Callable[[], MemoryByteStream]
        """Opens a stream of another program than the service."""

    def begin(self) -> None:
        """Nothing runs yet."""
        self._tasks = trio.lowlevel.current_statistics().tasks_living
        self._system_tasks = _count_system_tasks()
        self._threads = set(threading.enumerate())

    def keeper_runs(self) -> None:
        """The service runs below the task that calls this."""
        self._keeper = trio.lowlevel.current_task()

    def follow(self, simulator: Simulator) -> None:
        """Note every stream that the simulator gives away, and give none while it is away."""
        connect = simulator.connect

        def unnoted() -> MemoryByteStream:
            if self._world.network_is_down:
                raise ConnectionRefusedError("the network is down")
            return connect()

        def noted() -> MemoryByteStream:
            opened = unnoted()
            self._streams = [stream for stream in self._streams if not stream._closed]
            self._streams.append(opened)
            return opened

        self.connect = unnoted
        object.__setattr__(simulator, "connect", noted)

    def tasks_of_service(self) -> int:
        """How many tasks there are below the one that keeps the service."""
        return 0 if self._keeper is None else sum(1 for _ in _descendants(self._keeper))

    def service_ended(self, life: Life) -> None:
        """Look for what it has left."""
        violated, number = self._world.violated, life.number
        if tasks := self.tasks_of_service():
            violated(f"service {number} has left {tasks} tasks")
        if (system := _count_system_tasks()) != self._system_tasks:
            violated(f"service {number} has left {system - self._system_tasks} system tasks")
        # Others of the process may end meanwhile: trio's idle workers do.
        if threads := set(threading.enumerate()) - self._threads:
            violated(f"service {number} has left {len(threads)} threads")
        if still_open := [stream for stream in self._streams if not stream._closed]:
            violated(f"service {number} has left {len(still_open)} connections open")
        for channel in life.topology.channels if life.topology is not None else ():
            left = channel.statistics()
            if left.open_send_streams or left.open_receive_streams:
                violated(f"service {number} has left a channel open: {left}")
        self._world.parts.start_soon(self._await_hanging_up, number, self._streams)
        self._streams = []

    async def _await_hanging_up(self, number: int, streams: list[MemoryByteStream]) -> None:
        await anyio.sleep(_HANGING_UP_S)
        pipes = {id(stream._outgoing) for stream in streams}
        left = [
            connection.number
            for connection in self._world.sim._connections.values()
            if isinstance(connection._stream, MemoryByteStream)
            and id(connection._stream._incoming) in pipes
        ]
        if left:
            self._world.violated(f"service {number} has left the simulator's connections {left}")

    def check_at_end(self) -> None:
        """All has ended, the simulator too."""
        tasks = trio.lowlevel.current_statistics().tasks_living
        if tasks != self._tasks:
            self._world.violated(f"{tasks - self._tasks} tasks are left at the end")


def _count_system_tasks() -> int:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    own = trio.lowlevel.current_task()
    while own.parent_nursery is not None and own.parent_nursery.parent_task is not root:
        own = own.parent_nursery.parent_task
    return sum(
        1 + sum(1 for _ in _descendants(task))
        for nursery in root.child_nurseries
        for task in nursery.child_tasks
        if task is not own
    )
