"""What stands in Redis: the name of every key and channel.

The writer, the readers, the gateway and ``mdservice check`` take their names from here. The
price object, which is the content of a key, an event and a log entry alike, is written by
:mod:`mdservice.model.encode` and read by :mod:`mdservice.model.decode`.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ALERT_CHANNEL", "PRICE_CHANNEL", "STATUS_CHANNEL", "RedisNames"]

PRICE_CHANNEL: Final = "price.updated"
STATUS_CHANNEL: Final = "feed.status"
ALERT_CHANNEL: Final = "pnl.alert"


class RedisNames:
    """The names behind one prefix.

    Args:
        prefix: What stands in front of every name, ``MDSERVICE_KEY_PREFIX``.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._price = f"{prefix}price:".encode()

    def price_key(self, symbol: str) -> bytes:
        """The key of a symbol's price: ``AAPL`` → ``b"price:AAPL"``."""
        return self._price + symbol.encode()

    @property
    def price_keys(self) -> bytes:
        """The pattern that matches the keys of all prices, for ``SCAN``."""
        return self._price + b"*"

    def writer_key(self, instance: str) -> bytes:
        """The key that holds the number of the instance's last batch."""
        return f"{self.prefix}mdservice:writer:{instance}".encode()

    def channel(self, name: str) -> bytes:
        """A channel's full name: ``price.updated`` → ``b"desk1:price.updated"``."""
        return f"{self.prefix}{name}".encode()

    def event_log(self, name: str) -> bytes:
        """The stream to which events are appended."""
        return f"{self.prefix}{name}".encode()

    def rights(self, commands: str = "") -> str:
        """The ACL rules that let a user write, as ``ACL SETUSER`` takes them.

        Args:
            commands: Rules of commands, put in front.
        """
        names = f"~{self.prefix}price:* ~{self.prefix}mdservice:* resetchannels"
        channels = (PRICE_CHANNEL, STATUS_CHANNEL)
        allowed = " ".join(f"&{self.prefix}{channel}" for channel in channels)
        return f"{commands} {names} {allowed}".strip()
