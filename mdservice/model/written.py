"""Records as the JSON text that readers see, and back, derived from the record's class."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar, get_type_hints

import attrs
import msgspec

from mdservice.model.timestamps import format_ns, parse_rfc3339

__all__ = ["NOT_WRITTEN", "WrittenForm"]

NOT_WRITTEN: Final = {"written": False}
"""The metadata of an attribute that is not part of the text."""
_TIMES: Final = ("ts_event_ns", "ts_recv_ns")
_T = TypeVar("_T")

_encoder = msgspec.json.Encoder()


class WrittenForm(Generic[_T]):
    """The JSON text of one attrs class of records.

    The text has the attributes of the class under their own names and in their order; instead of
    the two times it has ``timestamp``, RFC 3339 text with nine decimals, just before ``seq``.
    An attribute that is ``msgspec.UNSET`` is left out.

    Args:
        record: An attrs class with ``ts_event_ns``, ``ts_recv_ns`` and, maybe, ``seq``.
    """

    def __init__(self, record: type[_T]) -> None:
        types = get_type_hints(record)
        names = [
            field.name
            for field in attrs.fields(record)  # type: ignore[arg-type]  # an attrs class
            if field.metadata.get("written", True)
        ]
        self._record: Callable[..., _T] = record
        values = [name for name in names if name not in (*_TIMES, "seq")]
        numbered = "seq" in names
        fields: list[Any] = [(name, types[name]) for name in values]
        optional = [one for one in fields if _may_be_unset(one[1])]
        fields = [one for one in fields if one not in optional]
        self._values = [name for name, _ in fields]
        self._optional = [name for name, _ in optional]
        fields.append(("timestamp", str))
        if numbered:
            fields.append(("seq", int))
        fields += [(name, type_, msgspec.UNSET) for name, type_ in optional]
        self._numbered = numbered
        self._struct: Any = msgspec.defstruct(f"Written{record.__name__}", fields, gc=False)
        self._get_values: Callable[[Any], Any] = attrgetter(*self._values)
        self._get_optional = [attrgetter(name) for name in self._optional]
        self.parse: Callable[[bytes], Any] = msgspec.json.Decoder(self._struct).decode
        """Returns the fields of a text. Raises ValueError for any other text."""

    def encode(self, record: Any) -> bytes:
        """The JSON text of a record."""
        values = [*self._get_values(record), format_ns(record.ts_event_ns)]
        if self._numbered:
            values.append(record.seq)
        values += [get(record) for get in self._get_optional]
        return _encoder.encode(self._struct(*values))

    def build(self, fields: Any) -> _T:
        """The record of these fields, with its own time as the time of reception.

        Raises:
            ValueError: The timestamp cannot be read.
        """
        event_ns = parse_rfc3339(fields.timestamp)
        values = dict(zip(self._values, self._get_values(fields), strict=True))
        for name in self._optional:
            values[name] = getattr(fields, name)
        if self._numbered:
            values["seq"] = fields.seq
        return self._record(**values, ts_event_ns=event_ns, ts_recv_ns=event_ns)


def _may_be_unset(type_: Any) -> bool:
    return msgspec.UnsetType in getattr(type_, "__args__", ())
