"""Every error that mdservice raises.

::

    MDServiceError
    ├── ConfigurationError      a setting, a file or a flag is wrong; exit code 78
    │   └── JournalInUse        another service records into the journal's folder
    ├── FeedError
    │   ├── FeedUnavailable     no connection, or it ended; trying again may help
    │   ├── FeedRefused         the feed refused, by code or HTTP status
    │   ├── HistoryUnavailable  past quotes: no answer, or an unreadable one
    │   └── HistoryRefused      past quotes: not for this feed, time or plan
    │       ├── NoHistory       this feed has none
    │       └── SymbolsRefused  the request was refused, maybe for a symbol in it
    ├── SubscriptionError
    │   ├── InvalidSymbol       not a symbol at all
    │   ├── InvalidChannel      not a channel that can be subscribed
    │   └── SubscriptionRefused the feed, or its limit, refused these symbols
    ├── StoreError
    │   ├── StoreUnavailable    no connection, or it was lost: a batch may have been written
    │   │   └── Deposed         another service of the group has claimed the lease
    │   └── StoreRefused        the server answered and executed nothing
    ├── PositionsError
    │   ├── PositionsUnavailable  no answer, or an unreadable one; known positions stay
    │   └── PositionsRefused      the source refused: a wrong key, path or format
    ├── AccountError
    │   ├── AccountUnavailable  no answer, or an unreadable one
    │   └── AccountRefused      the trading API refused: a wrong key, host or request
    ├── EmbeddedServerError     the embedded Valkey server could not be started
    ├── SocketInUse             another service answers at the API's socket
    ├── JournalError            a journal cannot be read, or has nothing of what is asked for
    └── ActorFailed             an actor was restarted too often; the service ends

Errors of other libraries are translated into these once, where they arrive, ``from exc``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = [
    "AccountError",
    "AccountRefused",
    "AccountUnavailable",
    "ActorFailed",
    "ConfigurationError",
    "Deposed",
    "EmbeddedServerError",
    "FeedError",
    "FeedRefused",
    "FeedUnavailable",
    "HistoryRefused",
    "HistoryUnavailable",
    "InvalidChannel",
    "InvalidSymbol",
    "JournalError",
    "JournalInUse",
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
    """The base of all errors of this package. The message says what to do."""


class ConfigurationError(MDServiceError):
    """A person must fix something before the next start."""


class FeedError(MDServiceError):
    """The market-data feed."""


class FeedUnavailable(FeedError):
    """The feed cannot be reached, or the connection ended. A retry may help."""


Remedy = Literal["fix", "retry", "wait_for_slot", "check_url"]
"""What helps after a refusal of the feed.

``fix``: a person has to change something. ``retry``: another try, with back-off.
``wait_for_slot``: the account's connection is in use, or was until now. ``check_url``: the server
has no stream at that address; it may still be starting.
"""


class FeedRefused(FeedError):
    """The feed refused.

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
    """Past quotes are not available now. A retry may help."""


class HistoryRefused(FeedError):
    """There are no past quotes for this feed, time or plan."""


class NoHistory(HistoryRefused):
    """The feed has no history. Nothing is wrong."""


class SymbolsRefused(HistoryRefused):
    """The request was refused, and a symbol in it may be the reason.

    The error does not name it. The same request without that symbol may succeed.
    """


class SubscriptionError(MDServiceError):
    """The subscribed symbols cannot be changed like this."""


class InvalidChannel(SubscriptionError):
    """The text is not a channel that can be subscribed. The message lists the known ones."""


class InvalidSymbol(SubscriptionError):
    """The text is not a symbol."""


class SubscriptionRefused(SubscriptionError):
    """The feed refused the change. The subscriptions are as before.

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
    """No connection, or it broke. The last batch may have been executed."""


class Deposed(StoreUnavailable):
    """Another service of the group leads now. This one writes nothing more, and stands by."""


class StoreRefused(StoreError):
    """The server answered with an error and executed nothing of the batch.

    Args:
        message: What happened and what to do.
        reconnect: Whether a new connection to the same address may reach a server that does
            not refuse: the primary behind a forwarder, a DNS name or a Kubernetes service.
        code: The code of the server's error, such as ``READONLY``.
    """

    def __init__(self, message: str, *, reconnect: bool = False, code: str = "ERR") -> None:
        super().__init__(message)
        self.reconnect = reconnect
        self.code = code


class PositionsError(MDServiceError):
    """The source of positions."""


class PositionsUnavailable(PositionsError):
    """Positions are not available now. A retry may help; known positions stay."""


class PositionsRefused(PositionsError):
    """The source refused, or its answer has no positions. A person must look at it."""


class AccountError(MDServiceError):
    """The account at the trading API."""


class AccountUnavailable(AccountError):
    """The account is not available now. A retry may help; what is known stays."""


class AccountRefused(AccountError):
    """The trading API refused. A person must look at it.

    Attributes:
        status: The HTTP status; 0 without one.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EmbeddedServerError(MDServiceError):
    """The embedded Valkey server did not start."""


class JournalInUse(ConfigurationError):
    """Another running service records into the journal's folder."""


class JournalError(MDServiceError):
    """A journal cannot be read, or has nothing of what is asked for."""


class SocketInUse(MDServiceError):
    """Another running service answers at the API's UNIX socket."""


class ActorFailed(MDServiceError):
    """An actor failed permanently: its error is not recoverable, or came too often."""
