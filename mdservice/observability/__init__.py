"""Logs, metrics, and the masking of secrets in texts and URLs."""
