"""The targets of fuzzing, one module each, and their kept corpus.

``just fuzz`` searches for inputs that fail; the tests replay those that reach new code.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["CORPUS", "TARGETS"]

CORPUS = Path(__file__).parent / "corpus"
TARGETS = (
    "feed_codec",
    "feed_socket",
    "http_requests",
    "journal_files",
    "position_rows",
    "redis_replies",
    "relay_messages",
    "settings_sources",
)
"""The names of the modules."""
