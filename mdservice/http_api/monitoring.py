"""Health, status, metrics and positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import attrs
import msgspec
from fastapi import APIRouter, Depends, Request, Response

from mdservice.http_api.handle import ServiceHandle
from mdservice.http_api.schemas import METRICS, HealthAnswer, PositionsAnswer, Problem, StatusAnswer
from mdservice.model.status import Readiness, status_to_json
from mdservice.observability.metrics import render_metrics
from mdservice.pnl.encode import encode_positions

__all__ = ["Service", "current_service", "json_answer", "positions_router", "router"]


router = APIRouter(tags=["monitoring"])
positions_router = APIRouter(prefix="/api/v1", tags=["positions"])

_JSON = "application/json"
_UNFIT: dict[int | str, dict[str, Any]] = {
    503: {"model": HealthAnswer, "description": "Not ready; the answer has the reasons."}
}
_NOT_KNOWN: dict[int | str, dict[str, Any]] = {
    503: {"model": Problem, "description": "The source of positions has not answered yet."}
}


async def current_service(request: Request) -> ServiceHandle:
    """The service that this application serves."""
    service: ServiceHandle = request.app.state.service
    return service


Service = Annotated[ServiceHandle, Depends(current_service)]


def json_answer(content: Mapping[str, Any], status: int = 200) -> Response:
    """A JSON answer with this content."""
    return Response(msgspec.json.encode(content), status, media_type=_JSON)


def _health(readiness: Readiness) -> Response:
    return json_answer(attrs.asdict(readiness), 200 if readiness.ready else 503)


@router.get("/health/live", response_model=HealthAnswer, responses=_UNFIT)
async def live(service: Service) -> Response:
    """Whether the event loop and the watchdog run."""
    return _health(service.liveness())


@router.get("/health/ready", response_model=HealthAnswer, responses=_UNFIT)
async def ready(service: Service) -> Response:
    """Whether the feed is logged in and subscribed, and Redis answers."""
    return _health(service.readiness())


@router.get("/status", response_model=StatusAnswer)
async def status(service: Service) -> Response:
    """The status of the whole service: feed, Redis, actors, counters and latencies."""
    return json_answer(status_to_json(service.status()))


@router.get("/metrics", response_class=Response, responses=METRICS)
async def metrics(request: Request) -> Response:
    """All counters and gauges for Prometheus, named `mdservice_*`."""
    accept = request.headers.get("accept", "")
    text, content_type = render_metrics(request.app.state.metrics, accept)
    return Response(text, headers={"content-type": content_type})


@positions_router.get("/positions", response_model=PositionsAnswer, responses=_NOT_KNOWN)
async def positions(service: Service) -> Response:
    """The last known positions."""
    report = service.status().positions
    error = None if report is None else report.last_error
    if report is not None and report.age_s is None:
        reason = error or f"{report.source} has not answered yet"
        return json_answer({"detail": f"the positions are not known: {reason}"}, 503)
    warnings = [] if error is None else [error]
    differences = () if report is None else report.differences
    body = encode_positions(service.positions(), warnings, differences)
    return Response(body, media_type=_JSON)
