"""Redis: commands, replies, connection, store, and the embedded server."""
