"""What flows: quotes, symbols, events. Imports nothing else of this package but its errors."""
