"""Real-time P&L for an execution gateway: a router to mount, and a small gateway that mounts it."""

from mdservice.gateway.router import pnl_router

__all__ = ["pnl_router"]
