"""How the service reaches other hosts: proxies, certificates, and the HTTP client.

Every part that connects gets the proxy from :func:`route` and the trusted certificates from
:func:`tls_context`, so REST, positions and the websocket follow the same environment variables.
The libraries' own reading of the environment is switched off: each reads other variables, and
some raise in the middle of a request.

Source: curl's manual, "Environment"; OpenSSL's ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import ipaddress
import logging
import math
import os
import re
import socket
import ssl
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import SplitResult, urlsplit

import anyio
import attrs

from mdservice.errors import ConfigurationError, MDServiceError
from mdservice.observability.logging import hide_secrets, masked
from mdservice.observability.masking import secrets_in_url

if TYPE_CHECKING:
    import httpx

__all__ = [
    "HttpAnswer",
    "HttpClient",
    "HttpFailed",
    "Route",
    "ca_file",
    "cannot_listen",
    "root_cause",
    "route",
    "tls_advice",
    "tls_context",
]

_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_PROXY_VARIABLES: Final = {
    "https": ("https_proxy", "all_proxy"),
    "http": ("http_proxy", "all_proxy"),
}
_SOCKS: Final = ("socks", "socks5", "socks5h")
_CA_FILES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CA_FOLDER: Final = "SSL_CERT_DIR"
_CLOSE_LIMIT_S: Final = 2.0
_MOST_CONNECTIONS: Final = 20
_DRAIN_S: Final = 0.5
"""How long to wait for the rest of an answer whose body is not wanted."""
_SHORT_BYTES: Final = 65_536
"""The limit of an answer whose body is not wanted."""
_WRONG_HOST: Final = "use a host name that the certificate is made for"
_WRONG_TIME: Final = "check this machine's clock, and the certificate's dates"
_CERTIFICATE_ADVICE: Final = {9: _WRONG_TIME, 10: _WRONG_TIME, 62: _WRONG_HOST, 64: _WRONG_HOST}
"""By OpenSSL's verify code. Source: OpenSSL, ``X509_STORE_CTX_get_error``."""
_Body = Literal["ok", "any", "ignored"]
"""Which answers' bodies are wanted: those of 200, all, or none."""
_IN_THE_BODY: Final = "the connection ended in the middle of the answer"


@attrs.frozen
class Route:
    """The way to a URL: direct, or through a proxy.

    Attributes:
        proxy: The proxy's URL, with its login; None for a direct connection.
        variable: The environment variable that names the proxy.
    """

    proxy: str | None = attrs.field(default=None, repr=False)
    variable: str | None = None

    @property
    def hint(self) -> str:
        """Text for an error: through which proxy the connection went, and how to avoid it."""
        if self.variable is None:
            return ""
        return f" (through the proxy of {self.variable}; NO_PROXY lists hosts to reach directly)"


_DIRECT: Final = Route()


def route(url: str, environ: Mapping[str, str] | None = None) -> Route:
    """The route to a URL of the scheme http, https, ws or wss.

    This machine (``localhost``, 127.0.0.0/8, ::1) is always reached directly, and so is each host
    that ``NO_PROXY`` lists. A malformed URL has a direct route; a request to it fails.

    Raises:
        ConfigurationError: The variable that applies does not name a usable proxy.
    """
    environ = os.environ if environ is None else environ
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return _DIRECT
    if not host or parts.scheme not in _PORTS or _is_this_machine(host):
        return _DIRECT
    scheme = "https" if parts.scheme in ("https", "wss") else "http"
    found = _first_set(_PROXY_VARIABLES[scheme], environ)
    if found is None or _excluded(host, port or _PORTS[parts.scheme], environ):
        return _DIRECT
    variable, value = found
    return Route(_proxy_url(variable, value), variable)


def _first_set(names: tuple[str, ...], environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The first variable with a value, and the value; the lower-case spelling wins."""
    for name in names:
        for spelling in (name, name.upper()):
            # In a CGI program, a web client can set HTTP_PROXY.
            if spelling == "HTTP_PROXY" and "REQUEST_METHOD" in environ:
                continue
            value = environ.get(spelling, "").strip()
            if value:
                return spelling, value
    return None


def _is_this_machine(host: str) -> bool:
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _excluded(host: str, port: int, environ: Mapping[str, str]) -> bool:
    found = _first_set(("no_proxy",), environ)
    entries = re.split(r"[\s,]+", found[1]) if found else []
    return any(_matches(entry.lower(), host.rstrip(".").lower(), port) for entry in entries)


def _matches(entry: str, host: str, port: int) -> bool:
    """Whether one entry of ``NO_PROXY`` covers a host: a name, an address, or a network."""
    if entry == "*":
        return True
    entry = entry.partition("://")[2] or entry
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):(\d+)", entry)
    if match:
        entry = match[1] or match[2] or ""
        if int(match[3]) != port:
            return False
    entry = entry.strip("[]").removeprefix("*").strip(".")
    if not entry:
        return False
    address = _address(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    return host == entry or host.endswith(f".{entry}")


def _proxy_url(variable: str, value: str) -> str:
    """The proxy of a variable, as both libraries read it."""
    given = value if "://" in value else f"http://{value}"
    hide_secrets(secrets_in_url(given))
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:
        raise _bad_proxy(variable, "its host or port is malformed") from None
    if parts.scheme in _SOCKS:
        _require_socks(variable)
        scheme, port = "socks5h", port or 1080
    elif parts.scheme in ("http", "https"):
        scheme, port = parts.scheme, port or _PORTS[parts.scheme]
    else:
        raise _bad_proxy(variable, "it has to start with http://, https:// or socks5://")
    host = parts.hostname
    if not host or not re.fullmatch(r"[!-~]+", parts.netloc, re.ASCII):
        raise _bad_proxy(variable, "it names no host, or has characters that no URL may have")
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{_login(parts)}{shown}:{port}"


def _login(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[0] + "@" if parts.username is not None else ""


def _require_socks(variable: str) -> None:
    """Check that the packages that httpx and websockets need for a SOCKS proxy are installed."""
    missing = [
        package
        for package, module in (("socksio", "socksio"), ("python-socks", "python_socks"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ConfigurationError(
            f"The environment variable {variable} names a SOCKS proxy, which needs the packages "
            f"{' and '.join(missing)}: install mdservice[socks], name an HTTP proxy in "
            "HTTPS_PROXY, or list the hosts to reach directly in NO_PROXY"
        )


def _bad_proxy(variable: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The environment variable {variable} is not the URL of a proxy: {reason}. Write it as "
        "http://host:port, or unset it"
    )


def ca_file(environ: Mapping[str, str] | None = None) -> tuple[str | None, str | None]:
    """The file and the folder of trusted certificates that the environment names, checked.

    ``SSL_CERT_FILE`` comes first, then ``REQUESTS_CA_BUNDLE`` and ``CURL_CA_BUNDLE``, which may
    also name a folder; ``SSL_CERT_DIR`` adds to the first, and replaces the other two.

    Raises:
        ConfigurationError: A variable names an unusable file; the message names the variable.
    """
    variable, file, folder = _authorities(environ)
    if file is not None:
        _kept_context("http", variable, file, folder)
    return file, folder


def _authorities(environ: Mapping[str, str] | None) -> tuple[str, str | None, str | None]:
    """The variable that counts, and the file and the folder that the environment names."""
    environ = os.environ if environ is None else environ
    given = [(name, environ.get(name, "").strip()) for name in _CA_FILES]
    folder = environ.get(_CA_FOLDER, "").strip() or None
    if folder is not None:
        folder = _existing_folders(folder)
        given = given[:1]
    for variable, path in given:
        if not path:
            continue
        if variable != "SSL_CERT_FILE" and Path(path).is_dir():
            return variable, None, path
        return variable, path, folder
    return _CA_FOLDER, None, folder


def _existing_folders(value: str) -> str:
    folders = [folder for folder in value.split(os.pathsep) if folder and Path(folder).is_dir()]
    if not folders:
        raise ConfigurationError(
            f"The environment variable {_CA_FOLDER} names {value!r}, which is not a folder: set "
            "it to a folder of PEM certificates (see `openssl rehash`), or unset it"
        )
    return os.pathsep.join(folders)


def _bad_certificates(variable: str, path: str, exc: Exception) -> ConfigurationError:
    if isinstance(exc, ssl.SSLError) or not isinstance(exc, OSError):
        reason = "holds no PEM certificates"
    else:
        reason = f"cannot be read ({exc.strerror or type(exc).__name__})"
    return ConfigurationError(
        f"The environment variable {variable} names {path!r}, which {reason}: set it to a file "
        "of PEM certificates, or unset it"
    )


def tls_context(
    use: Literal["http", "websocket"], environ: Mapping[str, str] | None = None
) -> ssl.SSLContext:
    """A client's context with the certificates that the environment names.

    Without such a variable it trusts the system's certificates and those of certifi, so that it
    also works in a container image without certificates.

    The context is kept, because reading the usual certificates takes 30 ms of processor time.
    Every call for the same use returns it, until a file of certificates changes. Callers do not
    change it; httpcore does, always in the same way, so HTTP has a context of its own.

    Raises:
        ConfigurationError: See :func:`ca_file`.
    """
    return _kept_context(use, *_authorities(environ))


def _kept_context(use: str, variable: str, file: str | None, folder: str | None) -> ssl.SSLContext:
    files = (file,) if file or folder else _default_files()
    return _read_context(use, variable, file, folder, tuple(map(_version, files)))


def _default_files() -> tuple[str | None, str]:
    import certifi

    return ssl.get_default_verify_paths().cafile, certifi.where()


def _version(file: str | None) -> tuple[int, ...]:
    """What changes when a file is replaced or written; empty without a file."""
    with suppress(OSError, ValueError):
        if file is not None:
            found = Path(file).stat()
            return found.st_ino, found.st_size, found.st_mtime_ns
    return ()


@functools.lru_cache(maxsize=8)
def _read_context(
    _use: str,
    variable: str,
    file: str | None,
    folder: str | None,
    _versions: tuple[tuple[int, ...], ...],
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if file is not None:
        try:
            context.load_verify_locations(cafile=file)
        except (OSError, ValueError) as exc:
            raise _bad_certificates(variable, file, exc) from exc
    if folder is not None:
        for one in folder.split(os.pathsep):
            context.load_verify_locations(capath=one)
    if file is None and folder is None:
        import certifi

        context.load_default_certs()
        context.load_verify_locations(cafile=certifi.where())
    return context


class _WithoutSecrets(logging.Filter):
    """Hides secrets in httpx's own log line of each request, which names the whole URL."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        shown = masked(text)
        if shown != text:
            record.msg, record.args = shown, ()
        return True


_WITHOUT_SECRETS: Final = _WithoutSecrets()


class HttpFailed(MDServiceError):
    """A request that has failed, or whose answer cannot be used.

    Args:
        message: What happened; without the URL, and without any secret.
        kind: ``timeout``; ``url`` for an unusable URL; ``size`` or ``encoding`` for such a
            problem of the answer; ``network`` for the rest.
    """

    def __init__(
        self, message: str, kind: Literal["timeout", "url", "size", "encoding", "network"]
    ) -> None:
        super().__init__(message)
        self.kind = kind


@attrs.frozen
class HttpAnswer:
    """A server's answer; the body is empty unless the status is 200, or ``any_status`` is set."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Requests for every HTTP use of one program; any failure is one :class:`HttpFailed`.

    Each part calls :meth:`prepare` with its URL in its constructor, so that a bad environment
    variable is a configuration error at the start. Redirects are not followed, so headers and
    logins stay with the URL's host. After :meth:`aclose` the next request opens new connections.

    Args:
        transport: Replaces the network in tests; environment variables are then ignored.
        environ: The environment; by default that of the process.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._transport = transport
        self._environ = environ
        self._context: ssl.SSLContext | None = None
        self._clients: dict[tuple[str | None, bool], httpx.AsyncClient] = {}
        self._kept: set[tuple[str | None, bool, bytes]] = set()
        logging.getLogger("httpx").addFilter(_WITHOUT_SECRETS)

    def hide(self, url: str) -> None:
        """Show ``***`` for a URL in all log lines, also as httpx writes it."""
        import httpx

        hide_secrets((url, str(httpx.URL(url))))

    def prepare(self, url: str) -> Route:
        """The route to a URL, checked together with the certificates that it needs.

        Raises:
            ConfigurationError: An environment variable is unusable; the message names it.
        """
        if self._transport is not None:
            return _DIRECT
        found = route(url, self._environ)
        if self._context is None and (_by_tls(url) or _by_tls(found.proxy or "")):
            self._context = tls_context("http", self._environ)
        return found

    async def get(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout_s: float,
        most_bytes: int,
        compressed: bool = True,
        any_status: bool = False,
        ask_twice: bool = False,
    ) -> HttpAnswer:
        """Send a GET request; repeat it once if a kept connection turns out to be closed.

        Args:
            url: The URL, without a login.
            params: The query; None keeps that of the URL.
            headers: Headers of the request.
            auth: User and password of basic authentication.
            timeout_s: The limit of each wait for the network.
            most_bytes: The limit of the answer's body, decompressed.
            compressed: Whether the answer may be compressed by gzip.
            any_status: Whether to return the body of an answer other than 200 too.
            ask_twice: Repeat the request once also if a new connection was closed.

        Raises:
            HttpFailed
        """
        encodings = "gzip" if compressed else "identity"
        response = await self._ask(
            "GET",
            url,
            params=params,
            headers={"Accept-Encoding": encodings, **(headers or {})},
            auth=auth,
            timeout_s=timeout_s,
            most_bytes=most_bytes,
            body="any" if any_status else "ok",
            ask_twice=ask_twice,
        )
        return _decompressed(response, most_bytes, compressed=compressed)

    async def post(
        self, url: str, content: bytes, *, headers: Mapping[str, str], timeout_s: float
    ) -> int:
        """Send a POST request once; return the status of the answer, whatever its body.

        Args:
            url: The URL.
            content: The body.
            headers: Headers of the request.
            timeout_s: The limit until the status is known, however slowly the answer comes.

        Raises:
            HttpFailed
        """
        answer = None
        with anyio.move_on_after(timeout_s):
            answer = await self._ask(
                "POST",
                url,
                content=content,
                headers=headers,
                timeout_s=timeout_s,
                most_bytes=_SHORT_BYTES,
                body="ignored",
                ask_once=True,
            )
        if answer is None:
            raise HttpFailed("does not answer in time", "timeout")
        return answer.status

    async def request(
        self,
        method: str,
        url: str,
        content: bytes | None,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        most_bytes: int,
    ) -> HttpAnswer:
        """Send any request that may be repeated; return the answer, whatever its status.

        Args:
            method: ``PATCH``.
            url: The URL, without a login.
            content: The body, or None.
            headers: Headers of the request.
            timeout_s: The limit of each wait for the network.
            most_bytes: The limit of the answer's body.

        Raises:
            HttpFailed
        """
        answer = await self._ask(
            method,
            url,
            content=content,
            headers={"Accept-Encoding": "identity", **headers},
            timeout_s=timeout_s,
            most_bytes=most_bytes,
            body="any",
        )
        return _decompressed(answer, most_bytes, compressed=False)

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str],
        auth: tuple[str, str] | None = None,
        timeout_s: float,
        most_bytes: int,
        body: _Body = "ok",
        ask_twice: bool = False,
        ask_once: bool = False,
    ) -> HttpAnswer:
        import httpx

        found = _DIRECT
        try:
            found = self.prepare(url)
            client = self._client_for(found.proxy, secure=_by_tls(url))
            request = client.build_request(
                method, url, params=params, content=content, headers=headers, timeout=timeout_s
            )
            way = (found.proxy, _by_tls(url), request.url.netloc)
            try:
                response = await _send(client, request, auth, most_bytes, body)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as exc:
                # A server may close a kept connection at any time, also just as it is used again.
                kept = self._transport is None and way in self._kept
                if ask_once or (not ask_twice and (not kept or _IN_THE_BODY in exc.args)):
                    raise
                self._kept.discard(way)
                response = await _send(client, request, auth, most_bytes, body)
            if len(self._kept) < _MOST_CONNECTIONS:
                self._kept.add(way)
        except HttpFailed:
            raise
        except ConfigurationError as exc:
            raise HttpFailed(str(exc), "url") from exc
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as exc:
            # Without the error's text, which can quote a part of the URL
            raise HttpFailed("is not a URL that can be asked", "url") from exc
        except httpx.TimeoutException as exc:
            raise HttpFailed(f"does not answer in time{found.hint}", "timeout") from exc
        except Exception as exc:  # whatever the library raises is a request that failed
            raise HttpFailed(f"{root_cause(exc)}{tls_advice(exc)}{found.hint}", "network") from exc
        return response

    def _client_for(self, proxy: str | None, *, secure: bool) -> httpx.AsyncClient:
        client = self._clients.get((proxy, secure))
        if client is None:
            import httpx

            through = None
            if proxy is not None:
                context = self._context if _by_tls(proxy) else None
                through = httpx.Proxy(proxy, ssl_context=context)
            client = self._clients[proxy, secure] = httpx.AsyncClient(
                trust_env=False,
                # False only if no https:// is requested: loading certificates takes a while
                verify=self._context if secure and self._context is not None else secure,
                proxy=through,
                transport=self._transport,
                limits=httpx.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=4),
            )
        return client

    async def aclose(self) -> None:
        """Close all connections, within a limit."""
        clients, self._clients = self._clients, {}
        self._kept.clear()
        with anyio.move_on_after(_CLOSE_LIMIT_S, shield=True):
            for client in clients.values():
                await client.aclose()


def _by_tls(url: str) -> bool:
    return url.strip().lower().startswith("https:")


async def _send(
    client: httpx.AsyncClient,
    request: httpx.Request,
    auth: tuple[str, str] | None,
    most_bytes: int,
    wanted: _Body,
) -> HttpAnswer:
    import httpx

    response = await client.send(request, auth=auth, stream=True, follow_redirects=False)
    body = b""
    try:
        if wanted == "ignored":
            # Read all the same, so that the connection can be kept.
            with anyio.move_on_after(_DRAIN_S, shield=True), suppress(httpx.HTTPError):
                await _read(response, most_bytes)
            client.cookies.clear()  # or a server could fill the memory with them
        elif response.status_code == 200 or wanted == "any":  # noqa: PLR2004 - OK
            body = await _read(response, most_bytes)
    except (httpx.RemoteProtocolError, httpx.ReadError) as exc:
        raise type(exc)(_IN_THE_BODY) from exc
    finally:
        with anyio.move_on_after(_CLOSE_LIMIT_S, shield=True):
            await response.aclose()
    headers = response.headers
    return HttpAnswer(response.status_code, headers, body)


async def _read(response: httpx.Response, most_bytes: int) -> bytes:
    """The body, and of one that is too long a little more than ``most_bytes``."""
    if response.is_stream_consumed:  # a test's transport has read it
        return response.content
    body = bytearray()
    # Raw, and ended by cancelling: a break, or a decompression error, would leave httpx's
    # generators to the garbage collector, and trio warns about that.
    with anyio.CancelScope() as reading:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > most_bytes:
                reading.cancel()
    return bytes(body)


def _decompressed(answer: HttpAnswer, most_bytes: int, *, compressed: bool) -> HttpAnswer:
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    body = answer.body
    if body and encoding not in ("", "identity"):
        if not compressed or encoding not in ("gzip", "x-gzip"):
            raise HttpFailed(f"answers in the encoding {encoding[:20]!r}", "encoding")
        reader = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            body = reader.decompress(body, most_bytes + 1)
        except zlib.error as exc:
            raise HttpFailed(f"answers with broken compression: {exc}", "encoding") from exc
        if not reader.eof and len(body) <= most_bytes:
            raise HttpFailed("answers with broken compression: it ends too early", "encoding")
    if len(body) > most_bytes:
        raise HttpFailed(f"answers with more than {_size(most_bytes)}", "size")
    return attrs.evolve(answer, body=body)


def _size(count: int) -> str:
    return f"{math.ceil(count / 2**20)} MiB"


def root_cause(exc: BaseException) -> str:
    """The reason in words: ``Connection refused``.

    Libraries wrap the system's error, often without a text, or in a text such as ``all attempts
    failed``.
    """
    inner = _chain(exc)[-1]
    if isinstance(exc, OSError) and isinstance(inner, OSError) and (words := _in_words(inner)):
        return words
    return str(exc) or str(inner) or type(inner).__name__


def cannot_listen(who: str, address: str, exc: Exception) -> ConfigurationError:
    """The error of a program that cannot listen at an address.

    Args:
        who: The setting with the address, or the program.
        address: ``host:port``.
        exc: The system's error.
    """
    advice = {
        errno.EADDRINUSE: "the port is in use: stop the program that uses it, or choose another",
        errno.EACCES: "ports below 1024 need special rights: choose a higher one",
        errno.EADDRNOTAVAIL: "this machine has no such address: use 127.0.0.1 or one of its own",
    }
    reason = advice.get(getattr(exc, "errno", None) or 0, root_cause(exc))
    if isinstance(exc, (socket.gaierror, UnicodeError)):
        reason = f"the host is unknown ({reason}): use 127.0.0.1 or an address of this machine"
    return ConfigurationError(f"{who}: cannot listen at {address}: {reason}")


def _in_words(exc: OSError) -> str | None:
    """The system's text for the error's number; None without one."""
    if exc.errno is None or isinstance(exc, ssl.SSLError):
        return None
    return exc.strerror if isinstance(exc, socket.gaierror) else os.strerror(exc.errno)


def tls_advice(exc: BaseException) -> str:
    """What to do about a certificate that was not accepted; empty for any other error."""
    for one in _chain(exc):
        if isinstance(one, ssl.SSLCertVerificationError):
            return "; " + _CERTIFICATE_ADVICE.get(
                one.verify_code,
                "where a private authority signs, set SSL_CERT_FILE to its certificate (PEM)",
            )
    return ""


def _chain(exc: BaseException) -> list[BaseException]:
    """The error and its causes, the innermost last."""
    chain = [exc]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        if inner in chain:
            break
        chain.append(inner)
    return chain
