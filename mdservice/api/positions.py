"""The positions that the service follows."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from mdservice.api.monitoring import Service, json_answer
from mdservice.api.schemas import PositionsAnswer, Problem
from mdservice.pnl.encode import encode_positions

__all__ = ["router"]

_NOT_KNOWN: dict[int | str, dict[str, Any]] = {
    503: {"model": Problem, "description": "The source of positions has not answered yet."}
}
router = APIRouter(prefix="/api/v1", tags=["positions"])


@router.get("/positions", response_model=PositionsAnswer, responses=_NOT_KNOWN)
async def positions(service: Service) -> Response:
    """The positions whose symbols are followed, as their source told them last."""
    report = service.status().positions
    error = None if report is None else report.last_error
    if report is not None and report.age_s is None:
        reason = error or f"{report.source} has not answered yet"
        return json_answer({"detail": f"the positions are not known: {reason}"}, 503)
    body = encode_positions(service.positions(), [] if error is None else [error])
    return Response(body, media_type="application/json")
