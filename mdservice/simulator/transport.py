"""httpx without a network: requests reach the simulator over streams in memory.

::

    async with httpx.AsyncClient(transport=SimulatorTransport(simulator)) as client:
        answer = await client.get(f"{simulator.rest_url}/v2/clock")

All but the socket is what httpx uses itself, so that connections end and time runs out as over
TCP, on trio's virtual clock too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anyio
import anyio.lowlevel
import httpcore
import httpx
from anyio.abc import ByteStream

from mdservice.simulator.server import Simulator

__all__ = ["SimulatorTransport"]


class SimulatorTransport(httpx.AsyncBaseTransport):
    """Every request goes to the simulator, whatever host it names; also after ``aclose``."""

    def __init__(self, simulator: Simulator) -> None:
        self._pool = httpcore.AsyncConnectionPool(network_backend=_Backend(simulator))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, and read the whole answer.

        Raises:
            httpx.TransportError: The simulator hung up, or did not answer in time.
        """
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        try:
            answer = await self._pool.request(
                request.method,
                url,
                headers=request.headers.raw,
                content=await request.aread(),
                extensions=request.extensions,
            )
        except tuple(_ERRORS) as exc:
            raise _ERRORS[type(exc)](str(exc), request=request) from exc
        return httpx.Response(
            answer.status, headers=answer.headers, content=answer.content, request=request
        )

    async def aclose(self) -> None:
        """Close what is open."""
        await self._pool.aclose()


_ERRORS: dict[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
}


class _Stream(httpcore.AsyncNetworkStream):
    """A stream in memory, with the interface of httpcore."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            with anyio.fail_after(timeout):
                return await self._stream.receive(max_bytes)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout from exc
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise httpcore.ReadError from exc

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        try:
            with anyio.fail_after(timeout):
                await self._stream.send(buffer)
        except TimeoutError as exc:
            raise httpcore.WriteTimeout from exc
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise httpcore.WriteError from exc

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:  # noqa: ARG002 - httpcore's signature
        return None


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects only to the simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def connect_tcp(  # httpcore's signature
        self,
        host: str,  # noqa: ARG002
        port: int,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        await anyio.lowlevel.checkpoint()
        try:
            return _Stream(self._simulator.connect())
        except OSError as exc:  # of a test that lets the simulator be away
            raise httpcore.ConnectError(str(exc)) from exc

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)
