"""Prices and P&L in a terminal: ``mdservice watch``."""
