"""Alpaca's streaming protocol for other programs, over the service's own connections."""
