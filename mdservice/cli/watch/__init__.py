"""Live prices and P&L for people, beside a running service."""
