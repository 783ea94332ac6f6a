"""The Redis calls of a gateway, over one connection that stays open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import starmap
from secrets import token_hex  # noqa: TID251 - for a name, which decides nothing
from typing import Final, Generic, TypeVar

import anyio
import attrs

from mdservice.client.connection import CLIENT_NAME, refuse_errors, refuse_moved
from mdservice.client.discovery import Discovery
from mdservice.client.http import NoAnswer
from mdservice.errors import StoreError, StoreRefused, StoreUnavailable
from mdservice.model.kinds import QUOTES, TRADES, Kind, R
from mdservice.model.quote import Quote
from mdservice.model.trade import Trade
from mdservice.pnl.breaker import Breaker, decode_breaker, encode_breaker
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection, RedisLocator
from mdservice.redis_io.names import BREAKER_CHANNEL, Instance, RedisNames, decode_instance
from mdservice.redis_io.replies import array

__all__ = ["HOLD_MS", "RedisCalls"]

_WAIT_S: Final = 5.0
"""How long a call waits for those before it."""
_WATCH_EVERY_S: Final = 1.0
"""How often sentinels are asked whether the server is still the primary."""
_ROLE: Final = pack(b"ROLE")
_UNWATCH: Final = pack(b"UNWATCH")
_MULTI, _EXEC = pack(b"MULTI"), pack(b"EXEC")
_MOST_TRIES: Final = 20
"""How often a change of the breaker is tried while others change it."""
HOLD_MS: Final = 3_000
"""How long a gateway holds the actions of a trip; a dead one is replaced after this time."""
_DAY_START_TTL_S: Final = 2 * 86_400
_T = TypeVar("_T")


def _is_replica(role: object) -> bool:
    return isinstance(role, list) and role[:1] == [b"slave"]


@attrs.define(eq=False)
class _Keys(Generic[R]):
    """The latest records of a kind.

    Attributes:
        kind: The kind.
        symbols: Those of the last question.
        question: The question; empty if it has to be made.
        contents: What the keys of these symbols held; most are read more often than they change.
        records: The same, decoded; None for a key that is gone or holds anything else.
        others: Content and record of other symbols.
    """

    kind: Kind[R]
    symbols: Sequence[str] = ()
    question: bytes = b""
    contents: list[object] = attrs.Factory(list)
    records: list[R | None] = attrs.Factory(list)
    others: dict[str, tuple[object, R | None]] = attrs.Factory(dict)

    def ask(self, symbols: Sequence[str], prefix: bytes) -> bytes:
        """The question for the keys of these symbols."""
        if symbols != self.symbols:
            known = zip(self.contents, self.records, strict=True)
            self.others.update(zip(self.symbols, known, strict=True))
            found = [self.others.pop(symbol, (None, None)) for symbol in symbols]
            self.contents = [content for content, _ in found]
            self.records = [record for _, record in found]
            self.symbols, self.question = symbols, b""
        if not self.question:
            self.question = pack(b"MGET", *(prefix + symbol.encode() for symbol in symbols))
        return self.question

    def take(self, contents: Sequence[object]) -> list[R | None]:
        """The records of the answer."""
        parse, build = self.kind.parse, self.kind.build
        symbols, known, records = self.symbols, self.contents, self.records
        for place, content in enumerate(contents):
            if content != known[place]:
                record = None
                try:
                    fields = parse(content)  # type: ignore[arg-type]  # else it is a TypeError
                    symbol = symbols[place]
                    if fields.symbol == symbol:
                        fields.symbol = symbol  # the known object, which dictionaries find sooner
                        record = build(fields)
                except (ValueError, TypeError):  # the key is gone, or holds anything else
                    pass
                known[place], records[place] = content, record
        return records.copy()


class RedisCalls:
    """Reads prices and publishes, one call at a time; reconnects after a failure.

    Cancelling a call leaves nothing half done that a later one could see.

    Args:
        discovery: Finds the server, and the names there, before each connection.
    """

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._names = RedisNames()
        self._id = token_hex(8).encode()
        """Names this gateway where it holds the actions of a trip."""
        self._record = b""
        """The question for the service's record."""
        self.service: Instance | None = None
        """The service that writes the keys, as it last named itself; None where it did not."""
        self._one_call = anyio.Lock()
        self._connection: RedisConnection | None = None
        self._locator: RedisLocator | None = None
        self._watched_s = 0.0
        """When the locator was last asked whether the server is the right one."""
        self._was_primary = False
        """Whether the server was a primary when the connection was opened."""
        self._address = ""
        self._prices = _Keys(QUOTES)
        self._trades = _Keys(TRADES)

    def __del__(self) -> None:
        # A gateway without a running tracker has no moment at which to close it.
        self.close()

    async def prices(self, symbols: Sequence[str]) -> list[Quote | None]:
        """The prices that stand in the keys of these symbols, in one round trip.

        None for a symbol whose key is gone, or holds anything else. The same objects as long as
        the keys do not change.

        Raises:
            StoreUnavailable: No connection, or no answer in time.
            StoreRefused: The server refuses the login or the command.
            ConfigurationError: The address cannot be used.
        """
        return await self._call(partial(self._read, self._prices, symbols)) if symbols else []

    async def trades(self, symbols: Sequence[str]) -> list[Trade | None]:
        """The same for the latest trades of these symbols.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: As :meth:`prices`.
        """
        return await self._call(partial(self._read, self._trades, symbols)) if symbols else []

    async def publish(self, channel: str, messages: Sequence[bytes]) -> None:
        """Publish the messages in order, on the channel behind the prefix.

        Each at least once: where a connection is lost in the middle, some may go out twice.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: As :meth:`prices`.
        """
        await self._call(partial(self._publish, channel, messages))

    async def breaker(self) -> Breaker | None:
        """The circuit breaker as its key has it; None without a key.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: As :meth:`prices`; refused also
                where the key holds anything else.
        """
        return await self._call(self._read_breaker)

    async def change_breaker(
        self,
        decide: Callable[[Breaker | None], Breaker | None],
        actions: Callable[[Breaker], bytes | None] = lambda _breaker: None,
    ) -> tuple[Breaker | None, bool]:
        """Change the circuit breaker in one step, so that no change of another gateway is lost.

        The key and the message on the channel ``risk.breaker`` come in one transaction.

        Args:
            decide: Gets the breaker as the key has it, and returns the new one, or None to leave
                it. Called again if another gateway was faster, or the connection was lost.
            actions: Returns what to write with the new breaker as the actions of its trip, or None.
                This gateway holds them then, as after :meth:`hold_actions`.

        Returns:
            The breaker that the key has now, and whether this call has changed it.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: As :meth:`breaker`.
        """
        tried: list[Breaker] = []

        async def change(connection: RedisConnection) -> tuple[Breaker | None, bool]:
            names, wanted, before = self._names, None, tuple(tried)

            def decided(payload: object) -> list[tuple[bytes, ...]]:
                nonlocal wanted
                wanted = decide(self._breaker_in(payload))
                if wanted is None:
                    return []
                tried[:] = *before, wanted  # none of this connection's earlier tries took effect
                content = encode_breaker(wanted)
                also = actions(wanted)
                return [
                    (b"SET", names.breaker_key, content),
                    (b"PUBLISH", names.channel(BREAKER_CHANNEL), content),
                    *([] if also is None else [(b"SET", names.actions_key, also), self._hold()]),
                ]

            standing = self._breaker_in(await self._change(names.breaker_key, decided, connection))
            # An earlier try may have been executed before its connection was lost.
            return (standing, standing in before) if wanted is None else (wanted, True)

        return await self._call(change)

    async def day_start(self, account: str) -> bytes | None:
        """What the account held at the start of the day, as :meth:`keep_day_start` kept it.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: As :meth:`prices`.
        """

        async def read(connection: RedisConnection) -> bytes | None:
            key = self._names.day_start_key(account)
            (payload,) = await connection.call(pack(b"GET", key))
            refuse_errors(self._address, (payload,))
            return payload if isinstance(payload, bytes) else None

        return await self._call(read)

    async def keep_day_start(self, account: str, content: bytes) -> None:
        """Keep what the account held at the start of the day, for two days.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: As :meth:`prices`.
        """

        async def write(connection: RedisConnection) -> None:
            key = self._names.day_start_key(account)
            answers = await connection.call(
                pack(b"SET", key, content, b"EX", b"%d" % _DAY_START_TTL_S)
            )
            refuse_errors(self._address, answers)

        await self._call(write)

    async def actions(self) -> bytes | None:
        """The actions of the last trip, as their key has them; None without a key.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: As :meth:`prices`.
        """

        async def read(connection: RedisConnection) -> bytes | None:
            role, payload = await connection.call(_ROLE, pack(b"GET", self._names.actions_key))
            self._refuse_demoted(role)
            refuse_errors(self._address, (payload,))
            return payload if isinstance(payload, bytes) else None

        return await self._call(read)

    async def change_actions(self, decide: Callable[[bytes | None], bytes | None]) -> None:
        """Change the actions of the last trip in one step; as :meth:`change_breaker`."""

        async def change(connection: RedisConnection) -> None:
            key = self._names.actions_key

            def decided(payload: object) -> list[tuple[bytes, ...]]:
                content = decide(payload if isinstance(payload, bytes) else None)
                return [] if content is None else [(b"SET", key, content)]

            await self._change(key, decided, connection)

        await self._call(change)

    async def hold_actions(self) -> bool:
        """Hold the actions of the last trip for 3 s, so that only one gateway executes them.

        Returns:
            Whether this gateway holds them, and not another one.

        Raises:
            StoreUnavailable, StoreRefused, ConfigurationError: As :meth:`prices`.
        """

        async def hold(connection: RedisConnection) -> bool:
            take, get = self._hold(b"NX"), pack(b"GET", self._names.actions_holder_key)
            role, taken, holder = await connection.call(_ROLE, pack(*take), get)
            self._refuse_demoted(role)
            refuse_errors(self._address, (taken, holder))
            if holder != self._id:
                return False
            if taken is None:
                refuse_errors(self._address, await connection.call(pack(*self._hold(b"XX"))))
            return True

        return await self._call(hold)

    def _hold(self, *condition: bytes) -> tuple[bytes, ...]:
        key = self._names.actions_holder_key
        return (b"SET", key, self._id, b"PX", b"%d" % HOLD_MS, *condition)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _call(self, talk: Callable[[RedisConnection], Awaitable[_T]]) -> _T:
        try:
            with anyio.fail_after(_WAIT_S):
                await self._one_call.acquire()
        except TimeoutError:
            raise StoreUnavailable("Redis is too slow: other calls wait for it") from None
        try:
            kept = self._connection is not None
            try:
                return await self._try(talk)
            except StoreError as exc:
                # A kept connection may have died long ago, or lead to a demoted server.
                if not kept or (isinstance(exc, StoreRefused) and not exc.reconnect):
                    raise
            return await self._try(talk)
        finally:
            self._one_call.release()

    async def _try(self, talk: Callable[[RedisConnection], Awaitable[_T]]) -> _T:
        done = False
        try:
            await self._refuse_moved()
            result = await talk(self._connection or await self._connect())
            done = True
        finally:
            if not done:
                self.close()
        return result

    async def _refuse_moved(self) -> None:
        locator, connection, now_s = self._locator, self._connection, anyio.current_time()
        if locator is None or connection is None or now_s - self._watched_s < _WATCH_EVERY_S:
            return
        self._watched_s = now_s
        await refuse_moved(locator, connection.server)

    async def _connect(self) -> RedisConnection:
        try:
            location = await self._discovery.find()
        except NoAnswer as exc:
            raise StoreUnavailable(str(exc)) from exc
        self._address, self._names = location.address.shown, location.names
        self._record = pack(b"GET", self._names.instance_key)
        self._prices.question = self._trades.question = b""
        self._connection = await RedisConnection.open(location.address, CLIENT_NAME)
        self._locator, self._watched_s = location.address, anyio.current_time()
        (role,) = await self._connection.call(_ROLE)
        # Not known where this user may not ask.
        self._was_primary = isinstance(role, list) and not _is_replica(role)
        return self._connection

    async def _read(
        self, keys: _Keys[R], symbols: Sequence[str], connection: RedisConnection
    ) -> list[R | None]:
        question = keys.ask(symbols, self._names.key_prefix(keys.kind))
        role, record, values = await connection.call(_ROLE, self._record, question)
        self._refuse_demoted(role)
        refuse_errors(self._address, (values,))
        array(self._address, values, len(symbols))
        self.service = decode_instance(record) or self.service
        return keys.take(values)

    def _refuse_demoted(self, role: object) -> None:
        """A replica answers reads, and takes messages that only its own subscribers hear."""
        if self._was_primary and _is_replica(role):
            raise StoreRefused(
                f"Redis at {self._address} was a primary and is a replica now; connecting again",
                reconnect=True,
            )

    async def _publish(
        self, channel: str, messages: Sequence[bytes], connection: RedisConnection
    ) -> None:
        (role,) = await connection.call(_ROLE)
        self._refuse_demoted(role)
        name = self._names.channel(channel)
        commands = (pack(b"PUBLISH", name, message) for message in messages)
        refuse_errors(self._address, await connection.call(*commands))

    async def _read_breaker(self, connection: RedisConnection) -> Breaker | None:
        get = pack(b"GET", self._names.breaker_key)
        role, payload = await connection.call(_ROLE, get)
        self._refuse_demoted(role)
        return self._breaker_in(payload)

    async def _change(
        self,
        key: bytes,
        decide: Callable[[object], list[tuple[bytes, ...]]],
        connection: RedisConnection,
    ) -> object:
        """Execute the commands for a key's content in one transaction; return that content.

        Args:
            key: The key.
            decide: Gets the content, and returns the commands; none leave all as it is. Called
                again if the content has changed meanwhile.
            connection: The connection.
        """
        watch, get = pack(b"WATCH", key), pack(b"GET", key)
        for _ in range(_MOST_TRIES):
            role, watched, payload = await connection.call(_ROLE, watch, get)
            self._refuse_demoted(role)
            refuse_errors(self._address, (watched, payload))
            commands = decide(payload)
            if not commands:
                await connection.call(_UNWATCH)
                return payload
            replies = await connection.call(_MULTI, *starmap(pack, commands), _EXEC)
            refuse_errors(self._address, replies)
            done = replies[-1]
            if done is not None:
                refuse_errors(self._address, array(self._address, done, len(commands)))
                return payload
        raise StoreUnavailable(f"{key.decode()} is changed by others all the time; try again")

    def _breaker_in(self, payload: object) -> Breaker | None:
        refuse_errors(self._address, (payload,))
        if payload is None:
            return None
        try:
            return decode_breaker(payload if isinstance(payload, bytes) else b"")
        except ValueError as exc:
            key = self._names.breaker_key.decode()
            raise StoreRefused(
                f"the key {key} in Redis at {self._address} is not a breaker ({exc}); delete it, "
                "or write what the documentation shows"
            ) from exc
