"""alpaca-py's private names that the SDK driver uses are still there, and mean the same.

When this fails after an upgrade, ``auto`` still works with the raw driver; fix
``mdservice/feed/alpaca/sdk_driver.py`` before widening the version range.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

import anyio
import msgspec
import pytest

from mdservice.errors import FeedError, FeedRefused, FeedUnavailable
from mdservice.feed.alpaca import sdk_driver as sdk
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.websockets_driver import MAX_FRAME_BYTES
from mdservice.feed.driver import CLOSE_TIMEOUT_S, OPEN_TIMEOUT_S
from mdservice.model.feeds import FEEDS

pytestmark = pytest.mark.pins

URL = "ws://127.0.0.1:1/v2/iex"


@pytest.fixture(scope="module", params=[feed.name for feed in FEEDS])
def sdk_classes(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    streams, protocol_class = sdk._import_sdk()
    return streams[request.param], protocol_class


@pytest.fixture
def lent(sdk_classes: tuple[Any, Any]) -> sdk._LentStream:
    return sdk._LentStream(*sdk_classes, URL, Credentials("key", "secret"), OPEN_TIMEOUT_S)


@pytest.fixture
def stream(lent: sdk._LentStream) -> Any:
    return lent._stream


def test_the_driver_uses_these_names_and_no_others() -> None:
    tree = ast.parse(inspect.getsource(sdk))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "_stream"
    }
    assert used == {"_start_ws", "_ws", "close"}, "pin new ones here too"


def test_the_names_are_there(stream: Any) -> None:
    assert inspect.iscoroutinefunction(stream._start_ws)
    assert inspect.iscoroutinefunction(stream.close)
    assert stream._ws is None
    assert not inspect.signature(stream._start_ws).parameters


def test_starting_connects_and_then_logs_in(sdk_classes: tuple[Any, Any]) -> None:
    class Told(sdk_classes[0]):
        calls: tuple[str, ...] = ()

        async def _connect(self) -> None:
            self.calls += ("connect",)

        async def _auth(self) -> None:
            self.calls += ("log in",)

    told = Told("key", "secret")
    asyncio.run(told._start_ws())
    assert told.calls == ("connect", "log in")


def test_the_url_may_be_any(stream: Any) -> None:
    assert stream._endpoint == URL


def test_its_old_websocket_client_takes_every_parameter_given(stream: Any) -> None:
    from websockets.legacy.client import Connect

    given: Mapping[str, Any] = stream._websocket_params
    taken = inspect.signature(Connect.__init__).parameters
    assert set(given) <= set(taken)
    assert given["open_timeout"] == OPEN_TIMEOUT_S
    assert given["max_size"] == MAX_FRAME_BYTES
    # websockets.legacy waits for up to five of its time limits when it closes.
    assert given["close_timeout"] * 5 <= CLOSE_TIMEOUT_S


class OneAnswer:
    """The place of the SDK's websocket while it logs in."""

    def __init__(self, *messages: Mapping[str, Any]) -> None:
        self.last_frame = msgspec.msgpack.encode(messages)
        self.sent: list[bytes] = []

    async def send(self, data: bytes) -> None:
        self.sent.append(data)

    async def recv(self) -> bytes:
        return self.last_frame


def opened_with(
    sdk_classes: tuple[Any, Any], websocket: OneAnswer, failure: Exception | None = None
) -> Any:
    """What opening ends with when the SDK's ``_connect`` brings this; its login is its own."""

    class Connected(sdk_classes[0]):
        async def _connect(self) -> None:
            self._ws = websocket
            if failure is not None:
                raise failure

    lent = sdk._LentStream(
        Connected, sdk_classes[1], URL, Credentials("key", "secret"), OPEN_TIMEOUT_S
    )
    try:
        return anyio.run(lent.open, backend="asyncio")
    except FeedError as exc:
        return exc


def test_its_login_speaks_msgpack(sdk_classes: tuple[Any, Any]) -> None:
    websocket = OneAnswer({"T": "success", "msg": "authenticated"})
    assert opened_with(sdk_classes, websocket) is websocket
    assert [msgspec.msgpack.decode(data) for data in websocket.sent] == [
        {"action": "auth", "key": "key", "secret": "secret"}
    ]


@pytest.mark.parametrize("code", [402, 404, 406, 409])
def test_a_refused_login_keeps_its_code(code: int, sdk_classes: tuple[Any, Any]) -> None:
    error = opened_with(sdk_classes, OneAnswer({"T": "error", "code": code, "msg": "no"}))
    assert isinstance(error, FeedRefused)
    assert (error.code, error.http) == (code, False)


def test_a_refused_greeting_keeps_its_code(sdk_classes: tuple[Any, Any]) -> None:
    greeting = OneAnswer({"T": "error", "code": 406, "msg": "connection limit exceeded"})
    error = opened_with(sdk_classes, greeting, ValueError("connected message not received"))
    assert isinstance(error, FeedRefused)
    assert error.code == 406


@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_a_refused_upgrade_keeps_its_status(status: int, sdk_classes: tuple[Any, Any]) -> None:
    from websockets.datastructures import Headers
    from websockets.legacy.exceptions import InvalidStatusCode

    error = opened_with(sdk_classes, OneAnswer(), InvalidStatusCode(status, Headers()))
    assert isinstance(error, FeedRefused)
    assert (error.code, error.http) == (status, True)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (TimeoutError(), "did not answer within"),
        (ConnectionRefusedError("refused"), "refused"),
        (KeyError("T"), "T"),
        (ValueError("connected message not received"), "connected message not received"),
    ],
)
def test_other_failures_may_be_tried_again(
    failure: Exception, text: str, sdk_classes: tuple[Any, Any]
) -> None:
    error = opened_with(sdk_classes, OneAnswer(), failure)
    assert isinstance(error, FeedUnavailable)
    assert text in str(error)


def test_closing_what_was_never_opened_is_harmless(lent: sdk._LentStream) -> None:
    anyio.run(lent.close, backend="asyncio")
    lent.abort()


def test_its_websocket_remembers_the_last_frame(sdk_classes: tuple[Any, Any]) -> None:
    from websockets.legacy.client import WebSocketClientProtocol

    protocol_class = sdk_classes[1]
    assert issubclass(protocol_class, WebSocketClientProtocol)
    assert protocol_class.last_frame is None
    assert inspect.iscoroutinefunction(WebSocketClientProtocol.recv)


def test_a_reconnect_imports_nothing_again() -> None:
    assert sdk._import_sdk() is sdk._import_sdk()
