"""The positions that the service follows."""

from __future__ import annotations

from fastapi import APIRouter, Response

from mdservice.api.monitoring import Service
from mdservice.api.schemas import PositionsAnswer
from mdservice.pnl.encode import encode_positions

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["positions"])


@router.get("/positions", response_model=PositionsAnswer)
async def positions(service: Service) -> Response:
    """The positions whose symbols are followed, as their source told them last."""
    return Response(encode_positions(service.positions()), media_type="application/json")
