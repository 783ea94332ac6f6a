"""The application: every call, and how errors are answered."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from mdservice.api import market_data, monitoring, positions
from mdservice.api.handle import ServiceHandle
from mdservice.api.metrics import metrics_registry, package_version
from mdservice.api.requests import BodyLimit
from mdservice.errors import InvalidSymbol, MDServiceError, SubscriptionRefused

__all__ = ["create_app"]

_DESCRIPTION = """Market data of one Alpaca account, shared with every program on the desk.

Over the UNIX socket no token is needed. Over TCP, where a token is set, every call but the two
health calls wants `Authorization: Bearer <token>`."""


def create_app(service: ServiceHandle) -> FastAPI:
    """The HTTP API of a running service.

    Its description is at ``/openapi.json``. There is no page at ``/docs``: FastAPI's would load
    its scripts from another host, which a machine on a trading desk should not do.

    Args:
        service: Where all answers come from.
    """
    app = FastAPI(
        title="mdservice",
        version=package_version(),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.metrics = metrics_registry(service.status)
    app.include_router(monitoring.router)
    app.include_router(market_data.router)
    app.include_router(positions.router)
    app.add_exception_handler(InvalidSymbol, _invalid_symbol)
    app.add_exception_handler(SubscriptionRefused, _refused)
    app.add_exception_handler(MDServiceError, _unavailable)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(BodyLimit)
    return app


async def _invalid_symbol(_request: Request, error: Exception) -> JSONResponse:
    return _problem(422, str(error))


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    return _problem(409, str(error))


async def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    return _problem(503, str(error))


async def _failed(_request: Request, _error: Exception) -> JSONResponse:
    return _problem(500, "the service failed on this request: the reason is in its log")


def _problem(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)
