"""Hold an Alpaca account's one market-data connection, and share it with all programs.

::

    async with mdservice.open_service(mdservice.Settings(symbols=("AAPL",))) as service:
        async with service.quotes("AAPL") as quotes:
            async for quote in quotes:
                print(quote.symbol, quote.price)

and in any other process::

    async with mdservice.open_prices("redis://localhost:6379", ["AAPL"]) as prices:
        async for quote in prices:
            print(quote.symbol, quote.price)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdservice.app.service import Service, open_service
    from mdservice.client.open import open_prices
    from mdservice.client.reader import Prices, PricesStatus
    from mdservice.errors import (
        ConfigurationError,
        FeedRefused,
        InvalidChannel,
        InvalidSymbol,
        MDServiceError,
        SubscriptionRefused,
    )
    from mdservice.model.events import FeedStatus
    from mdservice.model.quote import Quote
    from mdservice.model.status import Readiness, Status
    from mdservice.settings import Settings, load_settings

__all__ = [
    "ConfigurationError",
    "FeedRefused",
    "FeedStatus",
    "InvalidChannel",
    "InvalidSymbol",
    "MDServiceError",
    "Prices",
    "PricesStatus",
    "Quote",
    "Readiness",
    "Service",
    "Settings",
    "Status",
    "SubscriptionRefused",
    "__version__",
    "load_settings",
    "open_prices",
    "open_service",
]

__version__ = "0.1.0"

_HOMES = {
    "ConfigurationError": "mdservice.errors",
    "FeedRefused": "mdservice.errors",
    "FeedStatus": "mdservice.model.events",
    "InvalidChannel": "mdservice.errors",
    "InvalidSymbol": "mdservice.errors",
    "MDServiceError": "mdservice.errors",
    "Prices": "mdservice.client.reader",
    "PricesStatus": "mdservice.client.reader",
    "Quote": "mdservice.model.quote",
    "Readiness": "mdservice.model.status",
    "Service": "mdservice.app.service",
    "Settings": "mdservice.settings",
    "Status": "mdservice.model.status",
    "SubscriptionRefused": "mdservice.errors",
    "load_settings": "mdservice.settings",
    "open_prices": "mdservice.client.open",
    "open_service": "mdservice.app.service",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: ``mdservice status`` needs no event loop."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
