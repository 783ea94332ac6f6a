"""The gateway under test, as a process: a program on uvicorn that has mounted the router.

``python -m tests.bench.pnl_gateway REDIS_URL FIRST:COUNT…`` prints ``{"port": …}``. Each account has
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
from tests.bench.pnl_account import Account

PNL = "api/v1/positions/pnl/realtime"
_SHUTDOWN_S = 1


def path_of(account: Account) -> str:
    """Where an account's P&L is."""
    return f"/{account.first}-{account.count}/{PNL}"


def make_app(redis_url: str, accounts: list[Account]) -> FastAPI:
    """One program, the router mounted once for each account."""
    app = FastAPI()
    for account in accounts:
        router = pnl_router(account.rows().copy, settings=Settings(), redis_url=redis_url)
        app.include_router(router, prefix=f"/{account.first}-{account.count}")
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
    accounts = [Account(*map(int, text.split(":"))) for text in texts]
    config = uvicorn.Config(
        make_app(redis_url, accounts),
        port=0,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    _Server(config).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
