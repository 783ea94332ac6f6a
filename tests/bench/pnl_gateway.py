"""The gateway under test, as a process: a program on uvicorn that has mounted the router.

``python -m tests.bench.pnl_gateway REDIS_URL FIRST:COUNT…`` prints ``{"port": …}``. Each desk has
positions in COUNT symbols from the FIRST on, given by a function as in the example, and its routes
under ``/FIRST-COUNT``. It ends by a signal.
"""

from __future__ import annotations

import socket
import sys

import msgspec
import uvicorn
from fastapi import FastAPI

from mdservice.gateway import pnl_router
from mdservice.settings import Settings
from tests.bench.pnl_desk import Desk

PNL = "api/v1/positions/pnl/realtime"
_SHUTDOWN_S = 1


def path_of(desk: Desk) -> str:
    """Where a desk's P&L is."""
    return f"/{desk.first}-{desk.count}/{PNL}"


def make_app(redis_url: str, desks: list[Desk]) -> FastAPI:
    """One program, the router mounted once for each desk."""
    app = FastAPI()
    for desk in desks:
        router = pnl_router(desk.rows().copy, settings=Settings(), redis_url=redis_url)
        app.include_router(router, prefix=f"/{desk.first}-{desk.count}")
    return app


class _Server(uvicorn.Server):
    """Tells its port once connections are taken in."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        sys.stdout.buffer.write(msgspec.json.encode({"port": port}) + b"\n")
        sys.stdout.flush()


def main(redis_url: str, *texts: str) -> None:
    """Serve until a signal comes."""
    desks = [Desk(*map(int, text.split(":"))) for text in texts]
    config = uvicorn.Config(
        make_app(redis_url, desks),
        port=0,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    _Server(config).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
