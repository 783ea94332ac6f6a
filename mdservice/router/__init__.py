"""Per symbol: which quotes are accepted, in which order, with which number."""
