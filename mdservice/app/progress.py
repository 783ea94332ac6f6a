"""How far a run has published all records, kept in the store for the next run.

The newest key does not show it: REST may have brought that record alone, while the feed was down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
import msgspec
from anyio.abc import TaskStatus

from mdservice.observability.logging import get_logger

if TYPE_CHECKING:
    from mdservice.app.topology import Topology
    from mdservice.publish.store import ProgressStore

__all__ = ["Complete", "Progress", "ProgressKeeper", "read_complete"]

_log = get_logger(__name__)

_LOOK_EVERY_S: Final = 1.0

Complete = dict[str, dict[str, int]]
"""The time up to which all is published, by feed and channel, UTC nanoseconds."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Complete)


class Progress:
    """How far the records of each feed and channel are published without a hole.

    Args:
        until: What the earlier run has kept.
        topology: The parts of this run, before they run: they know the newest record of each
            symbol. Where nothing was kept, all counts as published up to the newest of these.

    Attributes:
        until: The time, by feed and channel, UTC nanoseconds.
    """

    def __init__(self, until: Complete, topology: Topology | None = None) -> None:
        self.until = {feed: dict(channels) for feed, channels in until.items()}
        for feed, channels in (_accepted(topology) if topology is not None else {}).items():
            kept = self.until.setdefault(feed, {})
            for channel, newest_ns in channels.items():
                kept[channel] = min(newest_ns, kept.get(channel, newest_ns))
        self._next: Complete | None = None
        """What was accepted; all of it is not yet written."""
        self._settled: int | None = None
        """How many events are written once it is."""

    def look(self, topology: Topology) -> None:
        """Note how far the records are published; once a second."""
        publisher = topology.publisher
        if self._next is not None:
            if self._settled is None:  # by now, the publisher has received all of it
                self._settled = publisher.settled + publisher.unacknowledged
            if publisher.settled < self._settled:
                return
            self.until = self._next
        self._settled = None
        self._next = _accepted(topology)

    def end(self, topology: Topology) -> None:
        """Note it once more, after the last event."""
        if not topology.publisher.unacknowledged:
            self.until = _accepted(topology)


def _accepted(topology: Topology) -> Complete:
    """Up to when all records are accepted."""
    found: Complete = {}
    for pipeline in topology.pipelines:
        times = {
            kind.channel: complete_ns
            for kind in pipeline.feed.kinds
            if pipeline.router.repairs(kind)
            and (complete_ns := pipeline.router.complete_until_ns(kind)) is not None
        }
        if times:
            found[pipeline.feed.name] = times
    return found


async def read_complete(store: ProgressStore) -> Complete:
    """What the earlier run has kept; empty if there is nothing that can be read."""
    payload = await store.read_progress()
    try:
        return {} if payload is None else _decoder.decode(payload)
    except msgspec.MsgspecError as exc:
        _log.warning("progress_not_read", reason=str(exc))
        return {}


class ProgressKeeper:
    """Keeps the progress of a service without a group in its store.

    Args:
        store: The store.
        topology: The running parts.
        earlier: What the earlier run has kept.
    """

    def __init__(self, store: ProgressStore, topology: Topology, earlier: Complete) -> None:
        self._store = store
        self._topology = topology
        self._progress = Progress(earlier, topology)
        self._keep()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep it once a second, and once more at the end, until cancelled."""
        task_status.started()
        try:
            while True:
                await anyio.sleep(_LOOK_EVERY_S)
                self._progress.look(self._topology)
                self._keep()
        finally:
            self._progress.end(self._topology)
            self._keep()

    def _keep(self) -> None:
        if self._progress.until:
            self._store.keep_progress(_encoder.encode(self._progress.until))
