"""The HTTP API: FastAPI, served by Hypercorn over a UNIX socket and optionally TCP.

:func:`mdservice.http_api.server.create_app` makes the application, and
:func:`mdservice.http_api.server.serve_api` listens. Importing only this package is fast.
"""
