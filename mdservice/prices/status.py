"""How a reader of prices is doing."""

from __future__ import annotations

import attrs

__all__ = ["PricesStatus"]


@attrs.frozen
class PricesStatus:
    """A reader at one moment.

    Attributes:
        connected: Connected, and nothing that is known is still to be fetched.
        url: Where the server is, without any secret; None before the first try.
        reconnects: Connections after the first.
        last_error: Why the last attempt or connection ended, or None.
        events: Updates that came as events, from the channel or the log.
        missed: Quotes that the service had accepted and that this reader did not see, as far
            as ``seq`` tells: the service conflated them, or they came while nobody listened.
        left_out: Quotes that were not newer than what was known: what keys and events both tell,
            or a feed that went back in time.
        conflated: Updates that the program was too slow for.
        decode_errors: Payloads that could not be read and were passed over.
        last_decode_error: What was wrong with the last of them, or None.
        resyncs: How often the keys were read again.
        starts: How often a symbol's ``seq`` began again: the service was started anew.
        trimmed: How often the event log had been cut, or begun anew, beyond this reader's
            position.
        symbols: Symbols with a price.
        waiting: Updates that wait for the program to take them.
        position: With an event log, the id of the last entry that the program was given.
        service: The id of the service that is followed; None where it does not name itself.
        foreign: Events of other services that publish the same names, which were passed over.
    """

    connected: bool
    url: str | None
    reconnects: int
    last_error: str | None
    events: int
    missed: int
    left_out: int
    conflated: int
    decode_errors: int
    last_decode_error: str | None
    resyncs: int
    starts: int
    trimmed: int
    symbols: int
    waiting: int
    position: str | None
    service: str | None = None
    foreign: int = 0
