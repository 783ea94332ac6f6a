"""The positions of the service on this machine, over its UNIX socket."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.http_api.server import serve_api
from mdservice.model.position import Position
from mdservice.positions.sources import ServicePositions
from mdservice.testing.fake_service import FakeService


@pytest.fixture
def socket(tmp_path_factory: Any) -> Any:
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="sp-"))  # short, as a socket's path has to be
    yield folder / "s"
    shutil.rmtree(folder)


def test_they_are_the_services_and_without_any_service_there_are_none(socket: Path) -> None:
    async def main() -> None:
        source = ServicePositions(socket)
        assert str(socket) in source.address
        assert list(await source.fetch()) == []
        assert "no service answers" in (source.out_of_date or "")
        service = FakeService()
        service.held = [Position("AAPL", Decimal("-1.50"), Decimal("0.1"))]
        async with anyio.create_task_group() as tasks:
            await tasks.start(
                lambda *, task_status: serve_api(service, socket=socket, task_status=task_status)
            )
            assert list(await source.fetch()) == service.held
            assert source.out_of_date is None
            tasks.cancel_scope.cancel()
        with pytest.raises(PositionsUnavailable, match="no service answers"):
            await source.fetch()
        await source.aclose()

    for backend in ("trio", "asyncio"):
        anyio.run(main, backend=backend)


def test_what_has_no_such_call_is_refused(socket: Path) -> None:
    async def main() -> None:
        async def answer(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.receive()
                await stream.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")

        listener = await anyio.create_unix_listener(socket)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            with pytest.raises(PositionsRefused, match="HTTP 404"):
                await ServicePositions(socket).fetch()
            tasks.cancel_scope.cancel()

    anyio.run(main)
