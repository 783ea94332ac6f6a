"""Places orders at the broker, only while the limits allow them.

    python place_orders.py 8004

The limits are those of the gateway at MDSERVICE_GATEWAY_HTTP. Orders go to MDSERVICE_TRADING_URL.
"""

import os
import sys
from decimal import Decimal
from typing import Any, Literal

import httpx
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

import mdservice
from mdservice.gateway import trading_allowed

settings = mdservice.load_settings(None, {}, os.environ)
CHECK = f"http://{settings.gateway_http}/api/v1/risk/check"
ORDERS = f"{settings.resolved_trading_url()}/v2/orders"
LOGIN = {
    "APCA-API-KEY-ID": settings.api_key or "",
    "APCA-API-SECRET-KEY": settings.secret_key or "",
}
app = FastAPI(title="Orders")


class Order(BaseModel):
    symbol: str
    side: Literal["buy", "sell"]
    qty: Decimal


@app.post("/orders", dependencies=[Depends(trading_allowed)])
async def place(order: Order) -> dict[str, Any]:
    """Place a market order. 423 and 503 come from the limits, 403 from the check."""
    body = order.model_dump(mode="json")
    async with httpx.AsyncClient(timeout=5) as client:
        check = await client.post(CHECK, json=body)
        if check.status_code != httpx.codes.OK:
            raise HTTPException(503, f"the order cannot be checked: {check.text}")
        if not check.json()["allowed"]:
            raise HTTPException(403, check.json()["reasons"])
        market = {**body, "type": "market", "time_in_force": "day"}
        placed = await client.post(ORDERS, json=market, headers=LOGIN)
        if placed.is_error:
            raise HTTPException(502, placed.text)
        return dict(placed.json())


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]))
