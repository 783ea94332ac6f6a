"""Real-time P&L and limits for an execution gateway, and a small gateway that serves them."""

from mdservice.gateway.risk_routes import trading_allowed
from mdservice.gateway.router import pnl_router

__all__ = ["pnl_router", "trading_allowed"]
