"""Turns a journal into Parquet: one row for each message of a channel, with every field as sent.

Prices and sizes are doubles, as Alpaca's msgpack has them; a number of JSON keeps up to 15 digits.
Times are UTC nanoseconds, ids are text. It needs pyarrow: ``pip install 'mdservice[export]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import reduce
from operator import attrgetter, or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
import msgspec

from mdservice.errors import ConfigurationError, JournalError
from mdservice.feed.alpaca.codec import Frame, json_time_ns, msgpack_time_ns
from mdservice.journal.format import OTHER_FORM, Entry, EntryType, damaged
from mdservice.journal.replay import Journal
from mdservice.journal.segments import read

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CHANNELS", "Exported", "export"]

_ROWS: Final = 100_000
"""Rows of one row group; so many are in memory."""

_MOST_CONNECTIONS: Final = 2**31 - 1
"""As many as the column ``connection`` can number."""
_OTHER_FORMATS: Final = frozenset((".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".feather", ".db"))
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, TypeError, RecursionError)

_Columns = tuple[tuple[str, str, str], ...]
_BAR: Final[_Columns] = (
    ("o", "open", "number"),
    ("h", "high", "number"),
    ("l", "low", "number"),
    ("c", "close", "number"),
    ("v", "volume", "number"),
    ("n", "trade_count", "integer"),
    ("vw", "vwap", "number"),
)
_FORMS: Final[Mapping[str, tuple[str, _Columns]]] = {
    "q": (
        "quotes",
        (
            ("bp", "bid", "number"),
            ("bs", "bid_size", "number"),
            ("bx", "bid_exchange", "text"),
            ("ap", "ask", "number"),
            ("as", "ask_size", "number"),
            ("ax", "ask_exchange", "text"),
            ("c", "conditions", "texts"),
            ("z", "tape", "text"),
        ),
    ),
    "t": (
        "trades",
        (
            ("p", "price", "number"),
            ("s", "size", "number"),
            ("x", "exchange", "text"),
            ("c", "conditions", "texts"),
            ("z", "tape", "text"),
            ("i", "id", "id"),
            ("tks", "taker_side", "text"),
        ),
    ),
    "c": (
        "corrections",
        (
            ("x", "exchange", "text"),
            ("z", "tape", "text"),
            ("oi", "original_id", "id"),
            ("op", "original_price", "number"),
            ("os", "original_size", "number"),
            ("oc", "original_conditions", "texts"),
            ("ci", "corrected_id", "id"),
            ("cp", "corrected_price", "number"),
            ("cs", "corrected_size", "number"),
            ("cc", "corrected_conditions", "texts"),
        ),
    ),
    "x": (
        "cancelErrors",
        (
            ("i", "id", "id"),
            ("x", "exchange", "text"),
            ("p", "price", "number"),
            ("s", "size", "number"),
            ("a", "action", "text"),
            ("z", "tape", "text"),
        ),
    ),
    "b": ("bars", _BAR),
    "u": ("updatedBars", _BAR),
    "d": ("dailyBars", _BAR),
    "s": (
        "statuses",
        (
            ("sc", "status_code", "text"),
            ("sm", "status_message", "text"),
            ("rc", "reason_code", "text"),
            ("rm", "reason_message", "text"),
            ("z", "tape", "text"),
        ),
    ),
    "l": (
        "lulds",
        (
            ("u", "limit_up", "number"),
            ("d", "limit_down", "number"),
            ("i", "indicator", "text"),
            ("z", "tape", "text"),
        ),
    ),
    "i": ("imbalances", (("p", "price", "number"), ("z", "tape", "text"))),
    "o": (
        "orderbooks",
        (("b", "bids", "levels"), ("a", "asks", "levels"), ("r", "reset", "truth")),
    ),
    "n": (
        "news",
        (
            ("id", "id", "id"),
            ("headline", "headline", "text"),
            ("summary", "summary", "text"),
            ("author", "author", "text"),
            ("content", "content", "text"),
            ("url", "url", "text"),
            ("source", "publisher", "text"),
            ("symbols", "symbols", "texts"),
            ("created_at", "created_at", "time"),
        ),
    ),
}
"""Alpaca's ``T`` of each channel, and of each field its name, its column and its type.

Symbol and time are not named here; news has ``symbols`` instead, and ``updated_at`` as its time.
"""
CHANNELS: Final = tuple(channel for channel, _ in _FORMS.values())
"""The channels, in Alpaca's names."""


class _Level(msgspec.Struct):
    p: float
    s: float


_TYPES: Final[Mapping[str, Any]] = {
    "number": float | None,
    "integer": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None,
    "text": str | None,
    "texts": list[str] | str | None,
    "id": int | str | None,
    "levels": list[_Level] | None,
    "truth": bool | None,
    "time": msgspec.Raw,
}


def _struct(tag: str, columns: _Columns) -> type[msgspec.Struct]:
    news = tag == "n"
    time = msgspec.field(name="updated_at" if news else "t", default=msgspec.Raw())
    fields: list[Any] = [("t", msgspec.Raw, time)]
    fields += [] if news else [("S", str)]
    fields += [
        (
            column,
            _TYPES[kind],
            msgspec.field(name=name, default=msgspec.Raw() if kind == "time" else None),
        )
        for name, column, kind in columns
    ]
    return msgspec.defstruct(f"Exported_{tag}", fields, tag_field="T", tag=tag, kw_only=True)


_STRUCTS: Final = {tag: _struct(tag, columns) for tag, (_, columns) in _FORMS.items()}
_ARTICLE: Final[Any] = _STRUCTS["n"]


@attrs.frozen
class Exported:
    """What was written.

    Attributes:
        rows: The rows.
        unreadable: Messages of any channel that could not be read, and are left out.
    """

    rows: int
    unreadable: int


def export(
    journal: Journal,
    out: Path,
    *,
    channels: Collection[str] = CHANNELS,
    symbols: Collection[str] = (),
    progress: Callable[[int], None] = lambda _ns: None,
) -> Exported:
    """Write the messages of channels to a Parquet file, in the order in which they came.

    Each row has ``channel``, ``symbol``, ``timestamp``, ``received`` (the time of reception),
    ``feed``, ``connection`` (counted from 1 in each run of the service) and ``source``: ``stream``,
    or ``rest`` for what a repair or a first price has brought; then the fields of its channel.
    Fields of other channels are null.

    Args:
        journal: The journal, or a part of it.
        out: The file; an existing one is replaced when all is written.
        channels: In Alpaca's names.
        symbols: Only these; empty for all.
        progress: Called with the time that was reached, UTC nanoseconds.

    Raises:
        ConfigurationError: pyarrow is not installed, a channel is unknown, or the file is named as
            one of another format.
        JournalError: The journal cannot be read, or the file not be written.
    """
    unknown = sorted(set(channels).difference(CHANNELS))
    if unknown:
        known = ", ".join(CHANNELS)
        raise ConfigurationError(f"{unknown[0]!r} is not a channel; known are {known}")
    if out.suffix.lower() in _OTHER_FORMATS:
        raise ConfigurationError(
            f"{out}: Parquet is written, not {out.suffix}; name the file {out.stem}.parquet"
        )
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as exc:
        raise ConfigurationError(
            "export needs pyarrow, which is not installed: pip install 'mdservice[export]'"
        ) from exc
    tags = [tag for tag, (channel, _) in _FORMS.items() if channel in channels]
    schema = _schema(pa, tags)
    reader = _Reader(tags, frozenset(symbols))
    if not out.parent.is_dir():
        raise JournalError(
            f"{out} cannot be written: there is no folder {out.parent}; create it, or name another "
            "file"
        )
    temporary = out.with_name(out.name + ".tmp")
    rows = 0
    try:
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for entry in read(journal.segments, journal.from_ns, journal.to_ns):
                if entry.time_ns < (journal.from_ns or 0):
                    reader.note(entry)
                    continue
                reader.take(entry)
                if reader.waiting >= _ROWS:
                    rows += reader.write(writer, schema)
                    progress(entry.time_ns)
            rows += reader.write(writer, schema)
        temporary.rename(out)
    except OSError as exc:
        raise JournalError(f"{out} cannot be written: {exc.strerror or exc}") from exc
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(rows, reader.unreadable)


def _schema(pa: Any, tags: Sequence[str]) -> pa.Schema:
    time, text = pa.timestamp("ns", tz="UTC"), pa.string()
    short = pa.dictionary(pa.int32(), text)
    level = pa.struct([("price", pa.float64()), ("size", pa.float64())])
    types = {
        "number": pa.float64(),
        "integer": pa.int64(),
        "text": text,
        "texts": pa.list_(text),
        "id": text,
        "levels": pa.list_(level),
        "truth": pa.bool_(),
        "time": time,
    }
    fields = {
        "channel": short,
        "symbol": short,
        "timestamp": time,
        "received": time,
        "feed": short,
        "connection": pa.int32(),
        "source": short,
    }
    for tag in tags:
        for _, column, kind in _FORMS[tag][1]:
            fields[column] = types[kind]
    return pa.schema(list(fields.items()))


class _Reader:
    """Collects messages, and makes record batches of them.

    Args:
        tags: Alpaca's ``T`` of the wanted channels.
        symbols: The wanted symbols; empty for all.
    """

    def __init__(self, tags: Sequence[str], symbols: frozenset[str]) -> None:
        self.unreadable = 0
        self.waiting = 0
        """Messages."""
        self._symbols = symbols
        self._tags = frozenset(tags)
        self._wanted = frozenset(_STRUCTS[tag] for tag in tags)
        self._connections: dict[int, tuple[str, str]] = {}
        """The feed and the encoding of each connection."""
        self._found: list[tuple[list[Any], int, str, int, str, bool]] = []
        """Messages, when they came, feed, connection, source, and whether they are JSON."""
        union: Any = reduce(or_, _STRUCTS.values())
        self._decoders = {
            name: (
                module.Decoder(list[union]).decode,
                module.Decoder(union).decode,
                module.Decoder(list[msgspec.Raw]).decode,
                module.Decoder(_Tag).decode,
            )
            for name, module in (("json", msgspec.json), ("msgpack", msgspec.msgpack))
        }

    def note(self, entry: Entry) -> dict[str, Any] | None:
        """Note what an event says about its connection; return the event."""
        if entry.type is not EntryType.EVENT:
            return None
        event = entry.event
        if event["event"] == "run":
            self._connections.clear()
        elif event["event"] in ("login", "open"):
            try:
                feed, encoding = str(event["feed"]), event["encoding"]
                if encoding not in self._decoders:
                    raise damaged(entry, "a connection in another encoding")
            except OTHER_FORM as exc:
                raise damaged(entry, repr(exc)) from exc
            self._connections[entry.connection] = (feed, encoding)
        return event

    def take(self, entry: Entry) -> None:
        """Take the wanted messages of an entry.

        Raises:
            JournalError: It has another form than the service writes.
        """
        if entry.connection > _MOST_CONNECTIONS:
            raise damaged(entry, f"a connection {entry.connection}")
        try:
            self._take(entry)
        except OTHER_FORM as exc:
            raise damaged(entry, repr(exc)) from exc

    def _take(self, entry: Entry) -> None:
        event = self.note(entry)
        if event is None:
            feed, encoding = self._connections.get(entry.connection, ("", "json"))
            for frame in entry.frames:
                self._add(self._messages(frame, encoding), entry, feed, "stream", encoding)
        elif "messages" in event:
            text = msgspec.json.encode(event["messages"])
            found = self._messages(text, "json")
            self._add(found, entry, event["feed"], "rest", "json")

    def _add(
        self, messages: list[Any], entry: Entry, feed: str, source: str, encoding: str
    ) -> None:
        if len(self._wanted) < len(_STRUCTS):
            messages = [each for each in messages if type(each) in self._wanted]
        if self._symbols:
            wanted = self._symbols
            messages = [
                each
                for each in messages
                if getattr(each, "S", None) in wanted
                or not wanted.isdisjoint(getattr(each, "symbols", None) or ())
            ]
        if messages:
            item = (messages, entry.time_ns, feed, entry.connection, source, encoding == "json")
            self._found.append(item)
            self.waiting += len(messages)

    def _messages(self, frame: Frame, encoding: str) -> list[Any]:
        whole, one, parts, tag_of = self._decoders[encoding]
        try:
            found: list[Any] = whole(frame)
        except _UNREADABLE:
            found = []
            try:
                pieces = parts(frame)
            except _UNREADABLE:
                self.unreadable += 1
                return []
            for piece in pieces:
                try:
                    found.append(one(piece))
                except _UNREADABLE:
                    self._count_unreadable(piece, tag_of)
        return found

    def _count_unreadable(self, piece: Any, tag_of: Callable[[Any], _Tag]) -> None:
        """Count a message that should have been readable: not one of another channel."""
        try:
            tag = tag_of(piece).T
        except _UNREADABLE:
            self.unreadable += 1
        else:
            self.unreadable += tag in self._tags

    def write(self, writer: Any, schema: pa.Schema) -> int:
        """Write what waits as one row group; return the number of rows."""
        import pyarrow as pa

        rows = _Rows()
        for messages, received_ns, feed, connection, source, is_json in self._found:
            self.unreadable += rows.add(messages, received_ns, feed, connection, source, is_json)
        self._found, self.waiting = [], 0
        if not rows.messages:
            return 0
        columns = rows.columns()
        for name in schema.names:
            columns.setdefault(name, [None] * len(rows.messages))
        arrays = [_array(pa, columns[field.name], field.type) for field in schema]
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        return len(rows.messages)


class _Tag(msgspec.Struct):
    T: str = ""


class _Rows:
    """The rows of one row group."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self._common: dict[str, list[Any]] = {
            name: [] for name in ("timestamp", "received", "feed", "connection", "source")
        }

    def add(
        self,
        messages: Sequence[Any],
        received_ns: int,
        feed: str,
        connection: int,
        source: str,
        is_json: bool,  # noqa: FBT001 - as in the tuples of the reader
    ) -> int:
        """Add messages; return how many have no valid time, and are left out."""
        time_ns = json_time_ns if is_json else msgpack_time_ns
        times: list[int] = []
        good: list[Any] = []
        for message in messages:
            try:
                times.append(_in_64_bits(time_ns(message.t)))
            except (ValueError, OverflowError, msgspec.DecodeError):
                continue
            good.append(message)
        self.messages += good
        count = len(good)
        common = self._common
        common["timestamp"] += times
        common["received"] += [received_ns] * count
        common["feed"] += [feed] * count
        common["connection"] += [connection] * count
        common["source"] += [source] * count
        for message in good:
            if type(message) is _ARTICLE:
                message.created_at = _time_or_none(message.created_at, time_ns)
        return len(messages) - count

    def columns(self) -> dict[str, list[Any]]:
        """The values of each column that some row has."""
        columns: dict[str, list[Any]] = dict(self._common)
        tags = [type(message).__struct_config__.tag for message in self.messages]
        columns["channel"] = [_FORMS[tag][0] for tag in tags]
        columns["symbol"] = [getattr(message, "S", None) for message in self.messages]
        present = set(tags)
        for tag in _FORMS:
            if tag not in present:
                continue
            for _, column, kind in _FORMS[tag][1]:
                if column not in columns:
                    columns[column] = list(self._values(column, kind, only=present == {tag}))
        return columns

    def _values(self, column: str, kind: str, *, only: bool) -> Iterator[Any]:
        read_one = _READ.get(kind)
        values: Iterator[Any]
        if only:
            values = map(attrgetter(column), self.messages)
        else:
            values = (getattr(message, column, None) for message in self.messages)
        return values if read_one is None else map(read_one, values)


def _time_or_none(raw: msgspec.Raw, time_ns: Callable[[msgspec.Raw], int]) -> int | None:
    try:
        return _in_64_bits(time_ns(raw))
    except (ValueError, OverflowError, msgspec.DecodeError):
        return None


def _in_64_bits(time_ns: int) -> int:
    """The time, which is one of the years 1678 to 2262.

    Raises:
        ValueError: It is any other.
    """
    if not -(2**63) <= time_ns < 2**63:
        raise ValueError(f"{time_ns} ns is beyond the times of Parquet")
    return time_ns


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _id(value: Any) -> Any:
    return value if value is None else str(value)


def _levels(value: Any) -> Any:
    return value if value is None else [{"price": each.p, "size": each.s} for each in value]


_READ: Final[Mapping[str, Callable[[Any], Any]]] = {"texts": _texts, "id": _id, "levels": _levels}


def _array(pa: Any, values: list[Any], kind: Any) -> Any:
    if pa.types.is_dictionary(kind):
        return pa.array(values, type=pa.string()).dictionary_encode()
    return pa.array(values, type=kind)
