"""An execution gateway that holds positions and mounts real-time P&L.

    python execution_gateway.py 8001

Prices come from the Redis of the service on this machine, or from MDSERVICE_REDIS_URL.
"""

import os
import sys
from decimal import Decimal

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

import mdservice
from mdservice.gateway import pnl_router


class Position(BaseModel):
    symbol: str
    qty: Decimal
    avg_entry_price: Decimal


book: dict[str, Position] = {}
app = FastAPI(title="An execution gateway")


@app.get("/api/v1/positions")
async def positions() -> dict[str, list[Position]]:
    """What is held; the service follows these symbols, see MDSERVICE_POSITIONS."""
    return {"positions": list(book.values())}


@app.put("/fills")
async def fill(position: Position) -> Position:
    """In the place of a broker: a position is opened, changed, or closed with qty 0."""
    if position.qty:
        book[position.symbol] = position
    else:
        book.pop(position.symbol, None)
    return position


settings = mdservice.load_settings(None, {}, os.environ)
app.include_router(pnl_router(book.values, settings=settings))

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), timeout_graceful_shutdown=3)
