"""The programs that are measured: how each is started, and what each can tell of itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import attrs
import httpx

from tests.bench.processes import Child, Cores, running

_READY_LIMIT_S = 10.0
_STATUS_LIMIT_S = 5.0
_POLL_S = 0.02


@attrs.frozen
class Surroundings:
    """What a program is given."""

    feed_url: str
    redis_url: str
    symbols: Sequence[str]
    folder: Path
    cores: Cores
    rest_url: str | None = None
    """Where the feed has a history."""

    @property
    def socket(self) -> Path:
        """The service's."""
        return self.folder / "api.sock"


class Program(Protocol):
    """Something that takes quotes from a websocket and writes them to Redis."""

    @property
    def name(self) -> str: ...

    @property
    def lossless(self) -> bool:
        """Whether it must account for every quote, also of a flood."""
        ...

    def running(self, given: Surroundings) -> Any:
        """A block during which it runs; gives a :class:`Child`."""
        ...

    def counters(self, given: Surroundings) -> dict[str, int] | None:
        """Its own counters, where it has any; waits until it is ready."""
        ...


@attrs.frozen
class PlainHandler:
    """Program A."""

    name: str = "A: alpaca-py handler"
    lossless: bool = False

    @contextmanager
    def running(self, given: Surroundings) -> Iterator[Child]:
        with running(
            "tests.bench.plain_handler",
            *(given.feed_url, given.redis_url, ",".join(given.symbols)),
            core=given.cores.program,
            others_core=given.cores.others,
            log=given.folder / "plain_handler.log",
        ) as child:
            yield child

    def counters(self, given: Surroundings) -> dict[str, int] | None:
        return None


@attrs.frozen
class Service:
    """``mdservice run`` with one of its drivers.

    Attributes:
        command: The module that is run, and its arguments.
        channels: As in the settings.
        relay: The address of the relay; without, there is none.
        environment: More settings.
        journal: The folder of the journal; without, there is none.
    """

    driver: str
    lossless: bool = True
    channels: str = "quotes"
    command: tuple[str, ...] = ("mdservice", "run")
    relay: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    journal: Path | None = None

    @property
    def name(self) -> str:
        more = (", relay" if self.relay else "") + (", journal" if self.journal else "")
        return f"mdservice, {self.driver}{more}"

    @contextmanager
    def running(self, given: Surroundings) -> Iterator[Child]:
        environment = {
            "ALPACA_API_KEY": "key",
            "ALPACA_SECRET_KEY": "secret",
            "MDSERVICE_FEED": "sip",
            "MDSERVICE_FEED_URL": given.feed_url,
            "MDSERVICE_REDIS_URL": given.redis_url,
            "MDSERVICE_DRIVER": self.driver,
            "MDSERVICE_SYMBOLS": ",".join(given.symbols),
            "MDSERVICE_CHANNELS": self.channels,
            "MDSERVICE_SOCKET": str(given.socket),
            "MDSERVICE_LOG_FORMAT": "json",
            **dict(self.environment),
        }
        if self.relay is not None:
            environment["MDSERVICE_RELAY"] = self.relay
        if self.journal is not None:
            environment["MDSERVICE_JOURNAL"] = str(self.journal)
        if given.rest_url is not None:
            environment |= {
                "MDSERVICE_REST_URL": given.rest_url,
                "MDSERVICE_TRADING_URL": given.rest_url,
            }
        with running(
            *self.command,
            core=given.cores.program,
            others_core=given.cores.others,
            log=given.folder / "mdservice.log",
            environment=environment,
        ) as child:
            yield child

    def counters(self, given: Surroundings) -> dict[str, int]:
        counters: dict[str, int] = self.status(given)["counters"]
        return counters

    def status(self, given: Surroundings) -> dict[str, Any]:
        """Its whole status; waits until it is ready."""
        transport = httpx.HTTPTransport(uds=str(given.socket))
        deadline = time.monotonic() + _READY_LIMIT_S
        with httpx.Client(transport=transport, timeout=_STATUS_LIMIT_S) as client:
            while True:
                status: dict[str, Any] = (
                    client.get("http://service/status").raise_for_status().json()
                )
                if status["state"] == "running":
                    return status
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name} is not ready: {status}")
                time.sleep(_POLL_S)
