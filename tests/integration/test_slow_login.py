"""A login that takes longer than the first limit, against a server that really takes that long."""

from __future__ import annotations

from itertools import product

import anyio
import pytest

from mdservice import Settings, open_service
from mdservice.errors import FeedUnavailable
from mdservice.feed import driver as feeds_driver
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.sdk_driver import AlpacaPyDriver
from mdservice.feed.alpaca.websockets_driver import WebsocketsDriver
from mdservice.feed.driver import Driver
from mdservice.feed.subscriptions import Followed
from mdservice.testing import MemoryPriceStore
from tests.integration.conftest import patient
from tests.integration.feed_server import LIMIT_S, Moment, PlainServer

KINDS: list[type[WebsocketsDriver | AlpacaPyDriver]] = [WebsocketsDriver, AlpacaPyDriver]
FIRST_S, SLOW_S = 0.5, 0.8
"""In the place of the real limit, and what the login takes."""


@pytest.mark.parametrize(
    "slow",
    [
        {"upgrade": SLOW_S},
        {"welcome": SLOW_S},
        {"auth": SLOW_S},
        {"upgrade": SLOW_S / 3, "welcome": SLOW_S / 3, "auth": SLOW_S / 3},
    ],
    ids="+".join,
)
@pytest.mark.parametrize(("kind", "backend"), list(product(KINDS, ("trio", "asyncio"))))
def test_a_slow_login_succeeds_with_one_of_the_next_tries(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[WebsocketsDriver | AlpacaPyDriver],
    backend: str,
    slow: dict[Moment, float],
) -> None:
    monkeypatch.setattr(feeds_driver, "OPEN_TIMEOUT_S", FIRST_S)

    async def scene() -> None:
        driver: Driver = kind(server.url, Credentials("key", "secret"))
        settings = Settings(symbols=("AAPL",))
        with anyio.fail_after(patient(LIMIT_S)):
            async with open_service(
                settings, drivers=[driver], store=MemoryPriceStore()
            ) as service:
                while not service.status().feed.subscribed:
                    await anyio.sleep(0.01)
        assert 2 <= len(server.lines) <= 4

    with PlainServer(slow=slow) as server:
        anyio.run(scene, backend=backend)


@pytest.mark.parametrize(
    ("moment", "words"), [("upgrade", "did not answer"), ("welcome", "did not finish the login")]
)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_error_says_whether_the_connection_was_open(
    monkeypatch: pytest.MonkeyPatch, backend: str, moment: Moment, words: str
) -> None:
    monkeypatch.setattr(feeds_driver, "OPEN_TIMEOUT_S", FIRST_S)

    async def scene() -> None:
        driver = WebsocketsDriver(server.url, Credentials("key", "secret"))
        with anyio.fail_after(LIMIT_S), pytest.raises(FeedUnavailable, match=words):
            async with driver.connect(Followed(), lambda: 0):
                pass

    with PlainServer(slow={moment: SLOW_S}) as server:
        anyio.run(scene, backend=backend)
