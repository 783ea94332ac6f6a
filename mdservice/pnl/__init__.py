"""Profit and loss of positions at live prices, and alerts on it. Pure: time is an argument."""
