"""A FastAPI application with the whole service inside.

python -m uvicorn --port 8080 --app-dir docs/examples embed_fastapi:app
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

import mdservice


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings = mdservice.Settings(symbols=("AAPL", "MSFT"))  # no keys: the simulator
    async with mdservice.open_service(settings) as service:
        app.state.service = service
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/bid/{symbol}")
async def bid(symbol: str) -> float:
    quote = app.state.service.latest(symbol)
    if quote is None:
        raise HTTPException(404, f"there is no quote of {symbol}")
    return quote.bid
