"""The names in Redis: every key and channel, and the service that writes them.

The writer, the readers, the gateway and ``mdservice check`` take their names from here.
:mod:`mdservice.model.kinds` describes the names and the content of each kind of record.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Collection
from typing import Any, Final

import msgspec

from mdservice.model.kinds import KINDS, QUOTES, Kind, Stream
from mdservice.model.market import Market

__all__ = [
    "ACCOUNT_CHANNEL",
    "ACTIONS_HOLDER_KEY",
    "ACTIONS_KEY",
    "ALERT_CHANNEL",
    "ANNOUNCE_EVERY_S",
    "BATCH_CHANNEL",
    "BREAKER_CHANNEL",
    "BREAKER_KEY",
    "EVENTS_TAG",
    "GONE_AFTER_S",
    "INSTANCES_CHANNEL",
    "PRICE_CHANNEL",
    "STATUS_CHANNEL",
    "BatchMarker",
    "Instance",
    "RedisNames",
    "decode_instance",
    "decode_marker",
    "encode_instance",
    "encode_marker",
]

PRICE_CHANNEL: Final = QUOTES.event
STATUS_CHANNEL: Final = "feed.status"
ACCOUNT_CHANNEL: Final = "account.updated"
"""Each event of the account's orders, with the position after it."""
ALERT_CHANNEL: Final = "pnl.alert"
BREAKER_KEY: Final = "risk:breaker"
"""The state of the gateway's circuit breaker. It has no time to live."""
ACTIONS_KEY: Final = "risk:on_trip"
"""The actions of the last trip that has some, and their outcome. It has no time to live."""
ACTIONS_HOLDER_KEY: Final = "risk:on_trip:holder"
"""The gateway that executes them."""
BREAKER_CHANNEL: Final = "risk.breaker"
BATCH_CHANNEL: Final = QUOTES.marker
"""The channel of the message before each batch of events: which service sent how many prices."""
INSTANCES_CHANNEL: Final = "mdservice.instances"
"""Each service announces itself here."""
EVENTS_TAG: Final = "{mdservice}"
"""In a cluster, all events are published by the node that serves the slot of this hash tag."""

_SHARDS: Final = tuple(
    f"{{{tag}}}" for tag in (10, 3, 61, 43, 11, 2, 60, 42, 12, 1, 63, 41, 13, 0, 62, 40)
)
"""Hash tags whose slots are spread evenly: the first is in the first sixteenth of the slots."""

ANNOUNCE_EVERY_S: Final = 1.0
GONE_AFTER_S: Final = 3.5
"""A service whose last announcement is older than this has ended: it missed three."""

_READING: Final = (
    *("get", "mget", "scan", "subscribe", "xread", "xrange", "xrevrange", "xinfo|stream"),
    *("ping", "select", "client|setname", "role"),
)
"""What readers send. ``a|b`` is one part of a command, whose other parts stay forbidden."""
_OTHERS: Final = (
    *("multi", "exec", "watch", "unwatch", "set", "expire", "del", "publish", "xadd"),
    *("client|id", "client|kill", "info"),
)
_CLUSTERED: Final = ("cluster|info", "cluster|slots", "asking")


class Instance(msgspec.Struct, frozen=True):
    """A running service, as it announces itself and as the key ``mdservice:instance`` names it.

    Attributes:
        id: A new random name for each start.
        db: The number of the database that it writes to.
        host: The name of its machine.
        pid: Its process id.
        pid_space: The process-id namespace of ``pid``; empty where that is unknown.
        feed: The feed's name.
        delay_s: By how many seconds the feed delays its prices on purpose.
        price_ttl_s: How many seconds the key of a price lives.
        since: When it started, RFC 3339.
        gone: Whether it is ending.
        market: The stock market's hours; None if they are not known to it.
        channels: Which channels a followed symbol gets; None if the service does not say.
        sharded: Whether its events are on the channels of shards; left out where they are not.
        group: The standby group that it leads; left out where it is in none.
    """

    id: str
    db: int
    host: str
    pid: int
    feed: str
    delay_s: float
    price_ttl_s: float
    since: str
    pid_space: str = ""
    gone: bool = False
    market: Market | None = None
    channels: tuple[str, ...] | None = None
    sharded: bool | msgspec.UnsetType = msgspec.UNSET
    group: str | msgspec.UnsetType = msgspec.UNSET


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Instance)


def encode_instance(instance: Instance) -> bytes:
    """One line of JSON."""
    return _encoder.encode(instance)


def decode_instance(payload: object) -> Instance | None:
    """Decode the text of :func:`encode_instance`; None for any other text."""
    try:
        return _decoder.decode(payload)  # type: ignore[arg-type]  # anything else is a TypeError
    except (msgspec.MsgspecError, TypeError, ValueError):
        return None


class BatchMarker(msgspec.Struct, frozen=True):
    """Says which service sent the next events of a kind on the same connection.

    Attributes:
        id: The service's :attr:`Instance.id`.
        db: The database that it writes to.
        events: How many events of the kind follow.
        number: Counts the service's batches with events of the kind, this one included if it has
            some; None from a service that does not count them.
        restored: Whether the service has written values again that the server had lost.
    """

    id: str
    db: int
    events: int
    number: int | None = None
    restored: bool = False

    def shows_loss_after(self, before: BatchMarker | None) -> bool:
        """Whether events are missing between the marker before, on the same connection, and this.

        The marker of a batch that was sent again, without an answer to the first time, shows none.
        """
        if self.restored:
            return True
        if before is None or before.id != self.id or before.number is None or self.number is None:
            return False
        return self.number > before.number + (self.events > 0)


def encode_marker(
    instance: str, db: int, events: int, number: int | None = None, *, restored: bool = False
) -> bytes:
    """``1f0c… 0 25 7``: 25 events follow, which are the 7th batch of their kind."""
    words = b"%b %d %d" % (instance.encode(), db, events)
    if number is not None:
        words += b" %d" % number
    return words + b" restored" if restored else words


def decode_marker(payload: object) -> BatchMarker | None:
    """Decode the text of :func:`encode_marker`; None for any other text."""
    words = payload.split() if isinstance(payload, bytes) else []
    try:
        id_, db, events, *more = words  # an older service sends no more
        number = int(more[0]) if more else None
        return BatchMarker(id_.decode(), int(db), int(events), number, bool(more[1:]))
    except ValueError:
        return None


class RedisNames:
    """The names behind one prefix.

    Args:
        prefix: The prefix of every name, ``MDSERVICE_KEY_PREFIX``.
        clustered: Whether the server is a cluster, which executes a transaction only on keys of
            one slot. Names of mdservice's own then have a hash tag, the part in braces.
        sharded: Whether its events are published to the nodes of 16 hash tags, by symbol.
    """

    def __init__(self, prefix: str = "", *, clustered: bool = False, sharded: bool = False) -> None:
        self.prefix = prefix
        self._clustered = clustered
        self.shards = _SHARDS if sharded else ()
        """The hash tags of the events' channels; empty if there is one channel of a kind."""
        self._price = self.key_prefix(QUOTES)

    def key_prefix(self, kind: Kind[Any]) -> bytes:
        """The part before the symbol in the keys of a kind: ``b"price:"``."""
        return f"{self.prefix}{kind.key_prefix}".encode()

    def keys(self, kind: Kind[Any]) -> bytes:
        """The pattern that matches the keys of all records of a kind, for ``SCAN``."""
        return self.key_prefix(kind) + b"*"

    def price_key(self, symbol: str) -> bytes:
        """The key of a symbol's price: ``AAPL`` → ``b"price:AAPL"``."""
        return self._price + symbol.encode()

    def writer_key(self, instance: str) -> bytes:
        """The key that holds the number of the instance's last batch."""
        tag = f"{EVENTS_TAG}:" if self._clustered else ""
        return f"{self.prefix}mdservice:writer:{tag}{instance}".encode()

    def stream_writer_key(self, instance: str, stream: bytes) -> bytes:
        """In a cluster, the key that holds the number of the last batch that wrote a stream.

        It is in the slot of the stream.
        """
        tag = stream.decode()
        tag = tag if "{" in tag else f"{{{tag}}}"
        return f"{self.prefix}mdservice:writer:{tag}:{instance}".encode()

    def shard_writer_key(self, instance: str, shard: str) -> bytes:
        """Likewise the number of the last batch that published to a shard."""
        return f"{self.prefix}mdservice:writer:{shard}:{instance}".encode()

    def shard_of(self, symbol: str) -> str:
        """The hash tag of the channels with the events of a symbol."""
        return self.shards[crc_hqx(symbol.encode(), 0) % len(self.shards)]

    def subscriptions(
        self, kind: Kind[Any], symbols: Collection[str] = ()
    ) -> list[tuple[bytes, bytes, bytes]]:
        """How to subscribe to a kind: the command, the markers' channel, the events' channel.

        Args:
            kind: The kind.
            symbols: The wanted symbols; empty for all.
        """
        if not self.shards or kind.stream is not None:
            return [(b"SUBSCRIBE", self.channel(kind.marker), self.channel(kind.event))]
        shards = dict.fromkeys(map(self.shard_of, symbols)) or self.shards
        return [
            (b"SSUBSCRIBE", self.channel(kind.marker, shard), self.channel(kind.event, shard))
            for shard in shards
        ]

    def group_keys(self, group: str) -> tuple[bytes, bytes, bytes, bytes]:
        """The keys of a group: its lease, last term, standby and subscriptions."""
        lease = f"{self.prefix}mdservice:group:{{{group}}}".encode()
        return lease, lease + b":term", lease + b":standby", lease + b":subscriptions"

    @property
    def instance_key(self) -> bytes:
        """The key that names the service which writes to this database."""
        return f"{self.prefix}mdservice:instance".encode()

    @property
    def progress_key(self) -> bytes:
        """The key that keeps for the next run up to when this one has published all records."""
        return f"{self.prefix}mdservice:progress".encode()

    def day_start_key(self, account: str) -> bytes:
        """The key that keeps what an account held at the start of the day."""
        return f"{self.prefix}mdservice:day_start:{account}".encode()

    @property
    def breaker_key(self) -> bytes:
        """The key of the circuit breaker: ``b"risk:breaker"``."""
        return f"{self.prefix}{BREAKER_KEY}".encode()

    @property
    def actions_key(self) -> bytes:
        """The key of the actions of the last trip: ``b"risk:on_trip"``."""
        return f"{self.prefix}{ACTIONS_KEY}{self._with_breaker}".encode()

    @property
    def actions_holder_key(self) -> bytes:
        """The key that names the gateway which executes them."""
        return f"{self.prefix}{ACTIONS_HOLDER_KEY}{self._with_breaker}".encode()

    @property
    def _with_breaker(self) -> str:
        """Puts a key into the slot of the breaker, for a change of both in one step."""
        return f":{{{self.prefix}{BREAKER_KEY}}}" if self._clustered else ""

    def channel(self, name: str, shard: str = "") -> bytes:
        """A channel's full name: ``price.updated`` → ``b"desk1:price.updated"``.

        With the hash tag of a shard: ``b"desk1:price.updated:{10}"``.
        """
        return f"{self.prefix}{name}{shard and ':'}{shard}".encode()

    def stream(self, stream: Stream) -> bytes:
        """The stream that keeps the records of a kind: ``b"news"``."""
        return f"{self.prefix}{stream.name}".encode()

    def event_log(self, name: str) -> bytes:
        """The stream to which events are appended."""
        return f"{self.prefix}{name}".encode()

    def rights(
        self, event_log: str | None = None, *, group: bool = False, reader: bool = False
    ) -> str:
        """The ACL rules for the service, its readers and the gateway, as ``ACL SETUSER`` has them.

        Args:
            event_log: The stream's name without the prefix, or None.
            group: Whether the service is in a group, whose lease needs scripts.
            reader: Only what ``open_prices`` and ``open_stream`` need, which write nothing.
        """
        channels = (
            *(kind.event for kind in KINDS),
            STATUS_CHANNEL,
            *(() if reader else (ACCOUNT_CHANNEL, ALERT_CHANNEL, BREAKER_CHANNEL)),
            *(kind.marker for kind in KINDS),
            INSTANCES_CHANNEL,
        )
        keys = [f"{kind.key_prefix}*" for kind in KINDS if kind.has_key]
        keys += [kind.stream.name for kind in KINDS if kind.stream is not None]
        if reader:
            keys.append("mdservice:instance")
        else:
            of_actions = (ACTIONS_KEY, ACTIONS_HOLDER_KEY)
            keys += ["mdservice:*", BREAKER_KEY]
            keys += (f"{key}:*" if self._clustered else key for key in of_actions)
        keys += [] if event_log is None else [event_log]
        commands = [*_READING, *(() if reader else _OTHERS)]
        commands += _CLUSTERED if self._clustered else ()
        commands += ["eval"] if group else []
        rules = [f"~{self.prefix}{pattern}" for pattern in keys]
        rules.append("resetchannels")
        rules += [f"&{self.prefix}{channel}" for channel in channels]
        if self.shards:
            sharded = (name for kind in KINDS for name in (kind.event, kind.marker))
            rules += [f"&{self.prefix}{name}:*" for name in sharded]
            commands += ["ssubscribe", *(() if reader else ("spublish",))]
        return " ".join(rules + [f"+{command}" for command in commands])
