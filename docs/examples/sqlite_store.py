"""The service with a SQLite file in the place of Redis.

python sqlite_store.py prices.db AAPL MSFT
"""

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import anyio
import anyio.to_thread

import mdservice
from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import Kind
from mdservice.publish.store import WriteBatch

T = TypeVar("T")

TABLES = """
CREATE TABLE IF NOT EXISTS latest (key TEXT PRIMARY KEY, payload TEXT, expires_s REAL);
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, channel TEXT, payload TEXT);
CREATE TABLE IF NOT EXISTS batches (writer TEXT PRIMARY KEY, number INTEGER);
"""
PRICE_TTL_S = 300
EVENTS_KEPT = 100_000
LOCKED_S = 1.0


class SqliteStore:
    """A price store: one file, one writer.

    A call is made in a thread, which anyio waits for also when it is cancelled, so none is ever
    left half done. `LOCKED_S` bounds how long that takes.
    """

    command_errors = 0
    last_command_error = None

    def __init__(self, path: str, writer: str) -> None:
        self._path, self._writer = path, writer
        self._file: sqlite3.Connection | None = None

    @property
    def address(self) -> str:
        return f"sqlite:{self._path}"

    async def connect(self) -> None:
        await self.aclose()  # with it ends whatever it had not committed
        try:
            self._file = await anyio.to_thread.run_sync(self._open)
        except sqlite3.Error as exc:
            raise StoreUnavailable(f"{self.address} cannot be opened: {exc}") from exc

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self._path, timeout=LOCKED_S, check_same_thread=False)
        try:
            file.executescript(TABLES)
        except sqlite3.Error:
            file.close()
            raise
        return file

    async def last_batch(self) -> int:
        return await self._do(self._last_batch)

    def _last_batch(self, file: sqlite3.Connection) -> int:
        asked = "SELECT number FROM batches WHERE writer = ?"
        row = file.execute(asked, [self._writer]).fetchone()
        return int(row[0]) if row else 0

    async def write(self, batch: WriteBatch) -> None:
        await self._do(lambda file: self._write(file, batch))

    def _write(self, file: sqlite3.Connection, batch: WriteBatch) -> None:
        latest = []
        for kind, payloads in batch.latest.items():
            expires_s = time.time() + (kind.ttl_s or PRICE_TTL_S)
            ages_s = batch.ages_s.get(kind, {})
            for symbol, payload in payloads.items():
                key = f"{kind.key_prefix}{symbol}"
                latest.append((key, payload.decode(), expires_s - ages_s.get(symbol, 0)))
        gone = [
            (f"{kind.key_prefix}{symbol}",)
            for kind, symbols in batch.deleted.items()
            for symbol in symbols
        ]
        events = [(message.channel, message.payload.decode()) for message in batch.messages]
        with file:  # one transaction: all of it, or, with an error, nothing
            file.executemany("INSERT OR REPLACE INTO latest VALUES (?, ?, ?)", latest)
            file.executemany("DELETE FROM latest WHERE key = ?", gone)
            file.executemany("INSERT INTO events (channel, payload) VALUES (?, ?)", events)
            file.execute(
                "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", [EVENTS_KEPT]
            )
            file.execute(
                "INSERT OR REPLACE INTO batches VALUES (?, ?)", [self._writer, batch.number]
            )

    async def read_latest(self, kind: Kind[Any], symbols: Iterable[str]) -> Mapping[str, bytes]:
        return await self._do(lambda file: self._read(file, kind.key_prefix, list(symbols)))

    def _read(self, file: sqlite3.Connection, prefix: str, symbols: list[str]) -> dict[str, bytes]:
        asked = "SELECT payload FROM latest WHERE key = ? AND expires_s > ?"
        rows = {s: file.execute(asked, [prefix + s, time.time()]).fetchone() for s in symbols}
        return {symbol: row[0].encode() for symbol, row in rows.items() if row}

    async def ping(self) -> None:
        await self._do(self._take_the_lock)

    def _take_the_lock(self, file: sqlite3.Connection) -> None:
        file.execute("BEGIN IMMEDIATE")
        file.rollback()

    async def _do(self, call: Callable[[sqlite3.Connection], T]) -> T:
        file = self._file
        if file is None:
            raise StoreUnavailable(f"{self.address} is not open: connect first")
        try:
            return await anyio.to_thread.run_sync(call, file)
        except sqlite3.Error as exc:
            raise StoreRefused(f"{self.address} refused: {exc}") from exc

    async def aclose(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


async def main(path: str, symbols: list[str]) -> None:
    store = SqliteStore(path, writer=f"run-{time.time_ns()}")
    settings = mdservice.load_settings(None, {"symbols": ",".join(symbols)}, os.environ)
    async with mdservice.open_service(settings, store=store) as service:
        while True:
            await anyio.sleep(1)
            status = service.status()
            print(status.state, status.counters.events_published, "events", flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2:])
