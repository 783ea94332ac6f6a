"""Writes records of every kind to a server, as the service does, and cuts readers off."""

from __future__ import annotations

import itertools
from typing import Any

from mdservice.client.connection import CLIENT_NAME
from mdservice.model.kinds import Kind
from mdservice.redis_io.names import (
    INSTANCES_CHANNEL,
    Instance,
    RedisNames,
    encode_instance,
    encode_marker,
)
from tests.records import make_record

START_NS = 1_700_000_000 * 10**9


class RecordWriter:
    """One run of a service.

    Args:
        server: The server.
        run: The id of the run, in its markers.
        prefix: The prefix of its names.
        db: The database that it writes to.
    """

    def __init__(self, server: Any, run: str = "one", prefix: str = "", db: int = 0) -> None:
        self.server = server
        self._run = run
        self._db = db
        self._names = RedisNames(prefix)
        self._seqs: dict[tuple[Kind[Any], str], int] = {}
        self._times = itertools.count(1)
        self._announcement: bytes | None = None

    def own_the_database(self) -> None:
        """Be the service that the readers of this database follow."""
        mine = Instance(self._run, self._db, "here", 1, "iex", 0.0, 300.0, "2026-11-20T15:51:44Z")
        self._announcement = encode_instance(mine)
        with self.server.client(db=self._db) as client:
            client.set(self._names.instance_key, self._announcement)

    def make(self, kind: Kind[Any], symbol: str = "AAPL", *, late_ns: int = 0) -> Any:
        """The symbol's next record; ``late_ns`` earlier than now, and then not the newest."""
        number = self._seqs[kind, symbol] = self._seqs.get((kind, symbol), 0) + 1
        record = make_record(kind, symbol, number, START_NS + next(self._times) * 1000 - late_ns)
        if late_ns:
            record.newest = False
        return record

    def write(self, *records: tuple[Kind[Any], Any], publish: bool = True) -> list[Any]:
        """Write in one transaction; without ``publish``, keys and streams alone."""
        counts: dict[Kind[Any], int] = {}
        for kind, _ in records:
            counts[kind] = counts.get(kind, 0) + 1
        names = self._names
        with self.server.client(db=self._db) as client, client.pipeline() as batch:
            if self._announcement is not None:  # a reader leaves a server without it
                batch.publish(names.channel(INSTANCES_CHANNEL), self._announcement)
            for kind, count in counts.items() if publish else ():
                marker = encode_marker(self._run, self._db, count)
                batch.publish(names.channel(kind.marker), marker)
            for kind, record in records:
                data = kind.encode(record)
                if kind.has_key and getattr(record, "newest", True):
                    batch.set(names.key_prefix(kind) + record.symbol.encode(), data)
                if kind.stream is not None:
                    fields = {"id": kind.stream.entry_id(record), "data": data}
                    batch.xadd(names.event_log(kind.stream.name), fields, maxlen=kind.stream.maxlen)
                if publish:
                    batch.publish(names.channel(kind.event), data)
            batch.execute()
        return [record for _, record in records]

    def set_key(self, kind: Kind[Any], record: Any) -> None:
        """Change a key without an event."""
        with self.server.client(db=self._db) as client:
            key = self._names.key_prefix(kind) + record.symbol.encode()
            client.set(key, kind.encode(record))

    def next(self, kind: Kind[Any], symbol: str = "AAPL", **more: Any) -> Any:
        """Make and write the symbol's next record."""
        publish = more.pop("publish", True)
        return self.write((kind, self.make(kind, symbol, **more)), publish=publish)[0]

    def cut_readers(self) -> int:
        """Kill the readers' connections; how many there were."""
        with self.server.client() as client:
            ids = [one["id"] for one in client.client_list() if one["name"] == CLIENT_NAME]
            return sum(client.client_kill_filter(_id=one) for one in ids)
