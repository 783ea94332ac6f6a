"""Every error that mdservice raises.

::

    MDServiceError
    ├── ConfigurationError      a setting, a file or a flag is wrong; exit code 78
    ├── FeedError
    │   ├── FeedUnavailable     no connection, or it ended; trying again may help
    │   ├── FeedRefused         the feed answered and said no, by code or HTTP status
    │   ├── HistoryUnavailable  past quotes: no answer, or one that cannot be read
    │   └── HistoryRefused      past quotes: not for this feed, time or plan
    │       ├── NoHistory       this feed has none
    │       └── SymbolsRefused  the request was refused, maybe for a symbol in it
    ├── SubscriptionError
    │   ├── InvalidSymbol       not a symbol at all
    │   └── SubscriptionRefused the feed, or its limit, refused these symbols
    ├── StoreError
    │   ├── StoreUnavailable    no connection, or it was lost: what was under way is uncertain
    │   └── StoreRefused        the server answered and did nothing of what was asked
    ├── PositionsError
    │   ├── PositionsUnavailable  no answer, or one that cannot be read; what was known stays
    │   └── PositionsRefused      the source answered and said no: a key, a path, a form
    ├── EmbeddedServerError     the embedded Valkey server could not be started
    ├── SocketInUse             another service answers at the API's socket
    └── ActorFailed             an actor was restarted too often; the service ends

Foreign exceptions are translated into these once, where they enter, ``from exc``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = [
    "ActorFailed",
    "ConfigurationError",
    "EmbeddedServerError",
    "FeedError",
    "FeedRefused",
    "FeedUnavailable",
    "HistoryRefused",
    "HistoryUnavailable",
    "InvalidSymbol",
    "MDServiceError",
    "NoHistory",
    "PositionsError",
    "PositionsRefused",
    "PositionsUnavailable",
    "SocketInUse",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "SubscriptionError",
    "SubscriptionRefused",
    "SymbolsRefused",
]


class MDServiceError(Exception):
    """The root of all errors of this package. Its text says what to do."""


class ConfigurationError(MDServiceError):
    """Something that only a person can fix before the next start."""


class FeedError(MDServiceError):
    """The market-data feed."""


class FeedUnavailable(FeedError):
    """The feed cannot be reached, or the connection ended. Worth another try."""


Remedy = Literal["fix", "retry", "wait_for_slot", "check_url"]
"""What helps after a refusal of the feed.

``fix``: a person has to change something. ``retry``: another try, with back-off.
``wait_for_slot``: the account's connection is in use, or was until now. ``check_url``: the server
has no stream at that address; it may still be starting.
"""


class FeedRefused(FeedError):
    """The feed answered, and said no.

    Args:
        message: What happened and what to do.
        code: The feed's own error code (Alpaca's 402, 406, …), or the HTTP status of a refused
            upgrade. It is shown; nothing depends on it.
        http: Whether ``code`` is an HTTP status.
        remedy: What helps: ``fix`` (a person has to change something), ``retry``,
            ``wait_for_slot`` (the account's connection is in use) or ``check_url`` (there is no
            stream at that address).
    """

    def __init__(
        self, message: str, *, code: int, http: bool = False, remedy: Remedy = "fix"
    ) -> None:
        super().__init__(message)
        self.code = code
        self.http = http
        self.remedy: Remedy = remedy


class HistoryUnavailable(FeedError):
    """Past quotes cannot be had now. Worth another try."""


class HistoryRefused(FeedError):
    """There are no past quotes for this feed, time or plan."""


class NoHistory(HistoryRefused):
    """The feed has no history: there is nothing to ask, and nothing is wrong."""


class SymbolsRefused(HistoryRefused):
    """The request was refused, and a symbol in it may be the reason.

    The error does not tell which one: the same request without that symbol may succeed.
    """


class SubscriptionError(MDServiceError):
    """A change of the subscribed symbols that cannot be made."""


class InvalidSymbol(SubscriptionError):
    """The text is not a symbol."""


class SubscriptionRefused(SubscriptionError):
    """The feed refused the change; the symbols subscribed before still are.

    Args:
        message: What happened and what to do.
        code: Alpaca's error code (405 is the symbol limit).
        symbols: The symbols that were asked for.
    """

    def __init__(self, message: str, *, code: int, symbols: Sequence[str]) -> None:
        super().__init__(message)
        self.code = code
        self.symbols = tuple(symbols)


class StoreError(MDServiceError):
    """The Redis-protocol server that holds the prices."""


class StoreUnavailable(StoreError):
    """No connection, or it broke: whether the last batch was executed is not known."""


class StoreRefused(StoreError):
    """The server answered with an error and executed nothing of the batch.

    Args:
        message: What happened and what to do.
        reconnect: Whether a new connection to the same address may reach a server that does
            not refuse: the primary behind a forwarder, a DNS name or a Kubernetes service.
    """

    def __init__(self, message: str, *, reconnect: bool = False) -> None:
        super().__init__(message)
        self.reconnect = reconnect


class PositionsError(MDServiceError):
    """Where the positions come from."""


class PositionsUnavailable(PositionsError):
    """No positions can be had now. Worth another try; what was known before stays."""


class PositionsRefused(PositionsError):
    """The source answered and said no, or what it says are no positions: a person has to look."""


class EmbeddedServerError(MDServiceError):
    """The embedded Valkey server did not start."""


class SocketInUse(MDServiceError):
    """Another running service answers at the API's UNIX socket."""


class ActorFailed(MDServiceError):
    """An actor failed for good: its error is not recoverable, or came too often."""
