"""Hold an Alpaca account's market-data connections, and share them with all programs.

::

    async with mdservice.open_service(mdservice.Settings(symbols=("AAPL",))) as service:
        async with service.quotes("AAPL") as quotes:
            async for quote in quotes:
                print(quote.symbol, quote.price)

and in any other process::

    async with mdservice.open_prices("redis://localhost:6379", ["AAPL"]) as prices:
        async for quote in prices:
            print(quote.symbol, quote.price)

    async with mdservice.open_stream("redis://localhost:6379", ["AAPL"], ["trades"]) as records:
        async for record in records:
            print(record)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdservice.app.service import Service, open_service
    from mdservice.client.open import open_prices, open_stream
    from mdservice.client.reader import (
        ChannelCounts,
        Prices,
        PricesStatus,
        Records,
        RecordsStatus,
    )
    from mdservice.errors import (
        ConfigurationError,
        FeedRefused,
        InvalidChannel,
        InvalidSymbol,
        MDServiceError,
        SubscriptionRefused,
    )
    from mdservice.model.bar import Bar
    from mdservice.model.events import FeedStatus
    from mdservice.model.news import Article
    from mdservice.model.order_book import OrderBook
    from mdservice.model.quote import Quote
    from mdservice.model.status import Readiness, Status
    from mdservice.model.trade import Cancel, Correction, Trade
    from mdservice.model.trading_status import Imbalance, LimitBand, TradingStatus
    from mdservice.settings import Settings, load_settings

__all__ = [
    "Article",
    "Bar",
    "Cancel",
    "ChannelCounts",
    "ConfigurationError",
    "Correction",
    "FeedRefused",
    "FeedStatus",
    "Imbalance",
    "InvalidChannel",
    "InvalidSymbol",
    "LimitBand",
    "MDServiceError",
    "OrderBook",
    "Prices",
    "PricesStatus",
    "Quote",
    "Readiness",
    "Records",
    "RecordsStatus",
    "Service",
    "Settings",
    "Status",
    "SubscriptionRefused",
    "Trade",
    "TradingStatus",
    "__version__",
    "load_settings",
    "open_prices",
    "open_service",
    "open_stream",
]

__version__ = "0.1.0"

_HOMES = {
    "Article": "mdservice.model.news",
    "Bar": "mdservice.model.bar",
    "Cancel": "mdservice.model.trade",
    "ChannelCounts": "mdservice.client.reader",
    "ConfigurationError": "mdservice.errors",
    "Correction": "mdservice.model.trade",
    "FeedRefused": "mdservice.errors",
    "FeedStatus": "mdservice.model.events",
    "Imbalance": "mdservice.model.trading_status",
    "InvalidChannel": "mdservice.errors",
    "InvalidSymbol": "mdservice.errors",
    "LimitBand": "mdservice.model.trading_status",
    "MDServiceError": "mdservice.errors",
    "OrderBook": "mdservice.model.order_book",
    "Prices": "mdservice.client.reader",
    "PricesStatus": "mdservice.client.reader",
    "Quote": "mdservice.model.quote",
    "Readiness": "mdservice.model.status",
    "Records": "mdservice.client.reader",
    "RecordsStatus": "mdservice.client.reader",
    "Service": "mdservice.app.service",
    "Settings": "mdservice.settings",
    "Status": "mdservice.model.status",
    "SubscriptionRefused": "mdservice.errors",
    "Trade": "mdservice.model.trade",
    "TradingStatus": "mdservice.model.trading_status",
    "load_settings": "mdservice.settings",
    "open_prices": "mdservice.client.open",
    "open_service": "mdservice.app.service",
    "open_stream": "mdservice.client.open",
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
