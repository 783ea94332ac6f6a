"""Fill the gap that a lost connection leaves, from history, and ask again later."""
