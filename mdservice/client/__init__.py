"""Back out: in any other process, the latest prices and every event, read from Redis."""
