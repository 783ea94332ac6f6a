"""alpaca-py's trading client with time limits, a size limit, no hidden waiting, and a way out.

Imports alpaca-py and what it rests on, so it is imported only when needed, and in a thread.

The client's session waits for ever, and the client sleeps and tries again after HTTP 429 and
504. So it gets a transport of ours, which limits each wait and reads the body itself: numbers
then come from the JSON text to the last digit, which the client's own parsing would not keep.
"""

from __future__ import annotations

import io
import socket
from contextlib import suppress
from functools import partial
from typing import Any

import requests
import urllib3
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.positions.answer import root_cause
from mdservice.positions.parse import MOST_BYTES

__all__ = ["Line"]

_CONNECT_S, _READ_S = 3.0, 7.0
"""Of one wait for the network; all of a fetch is limited by its caller."""
_CHUNK_BYTES = 64 * 1024


class Line:
    """One client and its connection; for one call at a time.

    Args:
        base_url: Without a ``/`` at its end.
        api_key: Sent as a header.
        secret_key: Likewise.
    """

    def __init__(self, base_url: str, api_key: str, secret_key: str) -> None:
        self._transport = _Transport()
        self._client = TradingClient(api_key, secret_key, raw_data=True, url_override=base_url)
        self._client._retry = 0  # noqa: SLF001 - pinned by a test; it has no public name
        self._session = self._client._session  # noqa: SLF001 - likewise
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, self._transport)

    def ask(self, address: str) -> tuple[int, bytes]:
        """HTTP status and body of the positions. Blocks.

        Raises:
            PositionsUnavailable: No answer, or not all of it.
            PositionsRefused: The URL cannot be asked.
        """
        self._transport.answer = None
        try:
            self._client.get_all_positions()
        except APIError:
            pass  # told by the status
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema):
            raise PositionsRefused(
                f"{address} cannot be asked: check MDSERVICE_TRADING_URL"
            ) from None
        except requests.exceptions.Timeout as exc:
            raise PositionsUnavailable(f"{address} does not answer in time") from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise PositionsUnavailable(f"{address} cannot be read: {root_cause(exc)}") from exc
        if self._transport.answer is None:
            raise PositionsUnavailable(f"{address} was not asked; worth another try")
        return self._transport.answer

    def cut(self) -> None:
        """Cut the connection, from any thread; the call under way ends, and none is made again."""
        self._transport.cut()
        self._session.close()


class _Transport(HTTPAdapter):
    """Asks for the client, keeps the answer for us, and gives the client an empty one."""

    def __init__(self) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self.answer: tuple[int, bytes] | None = None
        self.connection: HTTPConnection | None = None
        self.is_cut = False

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """The pool, with connections of ours."""
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        secure = isinstance(pool, urllib3.HTTPSConnectionPool)
        # Any callable does that makes a connection
        ours: Any = partial(_SecureConnection if secure else _PlainConnection, self)
        pool.ConnectionCls = ours
        return pool

    def send(self, request: Any, *_: Any, **options: Any) -> Any:
        """Ask; the body is read here, up to its limit."""
        response = super().send(request, **{**options, "timeout": (_CONNECT_S, _READ_S)})
        body = bytearray()
        for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > MOST_BYTES:
                response.raw.close()
                break
        response.raw.release_conn()
        self.answer = (response.status_code, bytes(body))
        response.raw = io.BytesIO()
        return response

    def check(self) -> None:
        if self.is_cut:
            raise ConnectionAbortedError("the call was given up")

    def cut(self) -> None:
        self.is_cut = True
        connection = self.connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with suppress(OSError):
                # Of the plain socket: TLS's own would first clear what the reader uses
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _PlainConnection(HTTPConnection):
    """Can be cut while it waits."""

    def __init__(self, transport: _Transport, **options: Any) -> None:
        self._transport = transport
        super().__init__(**options)

    def connect(self) -> None:
        super().connect()
        self._transport.check()  # it may have been cut before there was a socket

    def request(self, *args: Any, **options: Any) -> None:
        self._transport.connection = self
        self._transport.check()
        super().request(*args, **options)


class _SecureConnection(_PlainConnection, HTTPSConnection):
    """Likewise, with TLS."""
