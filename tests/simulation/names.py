"""The symbols of the simulation."""

from __future__ import annotations

STATIC = ("AAPL", "MSFT", "SPY")
"""Those of the settings."""
DYNAMIC = ("TSLA", "NVDA", "F", "KO")
"""Those that programs subscribe to."""
