"""The service as a whole: its wiring, its status, and running it."""
