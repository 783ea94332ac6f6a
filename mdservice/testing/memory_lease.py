"""A group's lease in this process, for tests under virtual time.

It passes the same contract suite as the lease in Redis.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.lowlevel
import msgspec

from mdservice.clock import Clock
from mdservice.errors import Deposed, StoreUnavailable
from mdservice.publish.lease import LEASE_S, Leader

__all__ = ["MemoryGroup", "MemoryLease"]


class MemoryGroup:
    """The server behind the leases of one group.

    Attributes:
        down: While True, every call of a lease fails.
    """

    def __init__(self) -> None:
        self.down = False
        self.restart()

    def restart(self) -> None:
        """Lose everything, and every connection."""
        for end in getattr(self, "writers", {}).values():
            end()
        self.run = object()
        """This run of the server."""
        self.leader: Leader | None = None
        self.expires_s = 0.0
        self.epoch = 0
        self.holder: str | None = None
        self.standby: tuple[str, float] = ("", 0.0)
        self.writers: dict[tuple[str, str], Callable[[], None]] = {}
        self.wishes: bytes | None = None

    def expire(self) -> None:
        """End the lease as if its time were over."""
        self.leader = None


class MemoryLease:
    """A :class:`~mdservice.publish.lease.Lease` in a :class:`MemoryGroup`.

    Args:
        group: The server.
        own: This member.
        clock: The time.
        lease_s: How long a lease lasts, seconds.
    """

    def __init__(
        self, group: MemoryGroup, own: Leader, *, clock: Clock, lease_s: float = LEASE_S
    ) -> None:
        self._group = group
        self._own = own
        self._clock = clock
        self._lease_s = lease_s
        self._highest = 0
        self._leads = False
        self._seen: Leader | None = None
        self._run: object = None
        self._led_run: object = None
        """The run of the server that last gave it the lease."""
        self._awake_s = 0.0
        self._held_until_s = 0.0
        self._was_stopped = False
        """Whether its lease ended while it was stopped, so that another may have led since."""
        self._may_return_until_s = 0.0
        self._last_error: str | None = None

    @property
    def address(self) -> str:
        """``memory://``."""
        return "memory://"

    @property
    def last_error(self) -> str | None:
        """Why the last call failed; None after one that succeeded."""
        return self._last_error

    @property
    def own(self) -> Leader:
        """This member, with the epoch of its present or last term."""
        return self._own

    async def look(self) -> Leader | None:
        """Who leads now."""
        group = await self._reach()
        group.standby = self._own.id, self._clock.monotonic() + self._lease_s
        self._highest = max(self._highest, group.epoch)
        leader = self._held()
        self._seen = leader if leader is not None and leader.id != self._own.id else None
        return self._seen

    async def claim(self) -> Leader | None:
        """Lead, unless another member does."""
        group = await self._reach()
        leader = self._held()
        if self._clock.monotonic() < self._may_return_until_s:
            return None
        if leader is not None and leader.id != self._own.id:
            return None
        self._take(self._own.leads(0, self._clock))
        writers, group.writers = group.writers, {}
        for end in writers.values():
            end()
        self._leads = True
        self._note_held()
        return self._own

    async def renew(self) -> bool:
        """Lead for another term of the lease."""
        group = await self._reach()
        leader = self._held()
        other = leader is not None and leader.id != self._own.id
        if not self._leads or other or group.holder not in (None, self._own.id):
            raise self._deposed()
        if self._was_stopped and group.run is not self._led_run:
            raise self._deposed("its lease ended while it was stopped")
        if leader is None:
            self._take(self._own)
        self._note_held()
        group.expires_s = self._held_until_s
        name, until_s = group.standby
        return name != self._own.id and until_s > self._clock.monotonic()

    async def release(self) -> None:
        """Free the lease if it is this member's."""
        self._leads = False
        group = await self._reach()
        leader = self._held()
        if leader is not None and leader.id == self._own.id:
            group.leader = None

    async def remember(self, wishes: bytes) -> None:
        """Keep what the leader's programs want for the next leader."""
        self._require_holder(await self._reach())
        self._group.wishes = wishes

    async def recall(self) -> bytes | None:
        """What the last leader's programs wanted, or None."""
        return (await self._reach()).wishes

    async def aclose(self) -> None:
        """Nothing is open."""

    async def admit(self, writer: str, end: Callable[[], None]) -> None:
        """Register a connection of a writer before it writes.

        Args:
            writer: Which of this member's writers.
            end: Ends the connection, also while a call waits on it.

        Raises:
            Deposed: Another member has claimed the lease.
            StoreUnavailable
        """
        group = await self._reach()
        self._require_holder(group)
        previous = group.writers.pop((self._own.id, writer), None)
        if previous is not None:
            previous()
        group.writers[self._own.id, writer] = end

    def _note_awake(self) -> None:
        now_s = self._clock.monotonic()
        if now_s >= self._held_until_s and now_s - self._awake_s >= self._lease_s / 2:
            self._was_stopped = True
        self._awake_s = now_s

    async def _reach(self) -> MemoryGroup:
        await anyio.lowlevel.checkpoint()
        self._note_awake()
        if self._group.down:
            self._last_error = "The lease at memory:// is away"
            raise StoreUnavailable(self._last_error)
        self._last_error = None
        if self._run not in (None, self._group.run) and self._seen is not None:
            self._may_return_until_s = self._clock.monotonic() + self._lease_s
        self._run = self._group.run
        return self._group

    def _note_held(self) -> None:
        self._held_until_s = self._clock.monotonic() + self._lease_s
        self._was_stopped = False
        self._led_run = self._group.run

    def _held(self) -> Leader | None:
        held = self._group.expires_s > self._clock.monotonic()
        return self._group.leader if held else None

    def _take(self, own: Leader) -> None:
        group = self._group
        epoch = max(group.epoch, self._highest, self._own.epoch) + 1
        self._own = msgspec.structs.replace(own, epoch=epoch)
        self._highest = group.epoch = epoch
        group.holder, group.leader = self._own.id, self._own
        group.expires_s = self._clock.monotonic() + self._lease_s
        if group.standby[0] == self._own.id:
            group.standby = ("", 0.0)

    def _require_holder(self, group: MemoryGroup) -> None:
        if not self._leads or group.holder not in (None, self._own.id):
            raise self._deposed()
        if group.holder is None:
            raise StoreUnavailable("The lease at memory:// is lost; it is claimed again first")

    def _deposed(self, why: str = "another service has claimed the lease") -> Deposed:
        self._leads = False
        return Deposed(f"{self._own.shown} no longer leads its group: {why}")
