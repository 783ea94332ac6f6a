"""Where positions come from: Alpaca, a gateway's URL or a file, behind one protocol."""
