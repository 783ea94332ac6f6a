"""Reads the latest prices and every event from Redis, in any process."""
