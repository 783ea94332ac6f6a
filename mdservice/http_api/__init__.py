"""The HTTP API: FastAPI, served by Hypercorn over a UNIX socket and, where set, TCP.

:func:`mdservice.http_api.server.create_app` makes the application, and
:func:`mdservice.http_api.server.serve_api` listens. Importing this package alone costs nothing.
"""
