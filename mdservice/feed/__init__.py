"""In: one market-data connection, its life, and what is subscribed on it."""
