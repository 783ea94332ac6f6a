"""Actors, their supervisor and watchdog, and the network."""
