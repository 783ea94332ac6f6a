"""The data model: quotes, symbols, events. Of this package it imports only the errors."""
