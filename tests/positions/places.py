"""Sources of positions with the other side of each, for the contract suite."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import anyio
import pytest

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.parse import parse_positions
from mdservice.positions.sources import (
    AlpacaPositions,
    FilePositions,
    HttpPositions,
    PositionSource,
)
from mdservice.testing import FakePositions
from tests.positions import web as webs
from tests.positions.web import Web, open_web

SECRET = "hidden-secret"
SHORT_LIMIT_S = 1.0
"""In the place of the real limit, where a test waits for it."""


class Place(Protocol):
    """A source, and the other side of it."""

    source: PositionSource

    def hold(self, document: Any) -> None: ...
    def be_away(self) -> None: ...
    def refuse(self) -> None: ...
    def stall(self) -> None: ...


class OverHttp:
    def __init__(self, web: Web, source: PositionSource) -> None:
        self.web = web
        self.source = source

    def hold(self, document: Any) -> None:
        self.web.hold(document)

    def be_away(self) -> None:
        self.web.status = 503

    def refuse(self) -> None:
        self.web.status = 401

    def stall(self) -> None:
        self.web.behaviour = webs.stall


class InFile:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "positions.json"
        self.source: PositionSource = FilePositions(self.path)
        self.ended = threading.Event()
        self._stalled = False
        stat = os.stat

        def slow_stat(path: Any, **options: Any) -> Any:
            if path == self.path and self._stalled:
                self.ended.wait()
            return stat(path, **options)

        monkeypatch.setattr("mdservice.positions.sources.os.stat", slow_stat)

    def hold(self, document: Any) -> None:
        self._stalled = False
        self._clear()
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(document))
        new.rename(self.path)

    def be_away(self) -> None:
        self._clear()

    def refuse(self) -> None:
        self._clear()
        self.path.mkdir()

    def stall(self) -> None:
        self._stalled = True

    def _clear(self) -> None:
        if self.path.is_dir():
            self.path.rmdir()
        self.path.unlink(missing_ok=True)


class Faked:
    def __init__(self) -> None:
        self.fake = FakePositions()
        self.source: PositionSource = self.fake

    def hold(self, document: Any) -> None:
        self.fake.always = None
        self.fake.resume()
        self.fake.set(*parse_positions(json.dumps(document).encode()))

    def be_away(self) -> None:
        self.fake.always = PositionsUnavailable(f"{self.fake.address} are away")

    def refuse(self) -> None:
        self.fake.always = PositionsRefused(f"{self.fake.address}: no")

    def stall(self) -> None:
        self.fake.stall()


KINDS = ("alpaca", "http", "file", "fake")
OVER_HTTP = ("alpaca", "http")
Test = Callable[[Any], Awaitable[None]]


@contextlib.contextmanager
def opened(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if kind == "fake":
        yield Faked()
    elif kind == "file":
        file = InFile(folder, monkeypatch)
        yield file
        file.ended.set()
    else:
        with open_web() as web:
            yield OverHttp(
                web,
                AlpacaPositions(web.url, "PKHIDDEN", SECRET)
                if kind == "alpaca"
                else HttpPositions(f"{web.url.replace('//', f'//me:{SECRET}@')}/mine"),
            )


def sources(kinds: tuple[str, ...] = KINDS) -> Callable[[Test], Callable[..., None]]:
    """Run the scene with every source, on both event loops."""

    def decorate(scene: Test) -> Callable[..., None]:
        @pytest.mark.parametrize("backend", ["trio", "asyncio"])
        @pytest.mark.parametrize("kind", kinds)
        def run(kind: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
            async def main() -> None:
                with anyio.fail_after(30):
                    try:
                        await scene(place)
                    finally:
                        await place.source.aclose()

            with opened(kind, tmp_path, monkeypatch) as place:
                anyio.run(main, backend=backend)

        run.__name__ = scene.__name__
        return run

    return decorate


def row(symbol: str = "AAPL", qty: str = "10", **more: Any) -> dict[str, Any]:
    return {"symbol": symbol, "qty": qty, "avg_entry_price": "150.00", **more}


def position(symbol: str = "AAPL", qty: str = "10") -> Position:
    return Position(symbol, Decimal(qty), Decimal("150.00"))


async def unavailable(source: PositionSource) -> str:
    return await failing(source, PositionsUnavailable)


async def refused(source: PositionSource) -> str:
    return await failing(source, PositionsRefused)


async def failing(source: PositionSource, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        await source.fetch()
    shown = [str(caught.value), repr(caught.value)]
    assert source.address in shown[0]
    assert not any("hidden" in text.lower() for text in shown)
    return shown[0]
