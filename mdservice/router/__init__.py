"""Accepts, orders and numbers the quotes of each symbol."""
