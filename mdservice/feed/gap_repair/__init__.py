"""Fetch the quotes that a lost connection missed from history."""
