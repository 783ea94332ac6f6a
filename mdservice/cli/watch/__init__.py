"""Live prices and P&L in the terminal, from a running service."""
