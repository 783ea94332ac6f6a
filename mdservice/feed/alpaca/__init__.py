"""Alpaca's protocol: messages, codec, error codes, endpoints, and two drivers for it."""
