"""What the program says of itself: logs, masked secrets, URLs as they may be shown."""
