"""Proxies and certificates from the environment, and the HTTP client that uses them."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from mdservice.errors import ConfigurationError
from mdservice.runtime import network
from mdservice.runtime.network import (
    HttpClient,
    HttpFailed,
    ca_file,
    cannot_listen,
    root_cause,
    route,
    tls_context,
)
from tests.positions import web as webs
from tests.positions.web import Web, open_web

DATA = "https://data.alpaca.markets"
PROXY = "http://proxy.example:3128"


@pytest.fixture
def web() -> Iterator[Web]:
    with open_web() as web:
        yield web


# ---- proxies


@pytest.mark.parametrize(
    ("environ", "url", "variable"),
    [
        ({}, DATA, None),
        ({"HTTPS_PROXY": PROXY}, DATA, "HTTPS_PROXY"),
        ({"https_proxy": PROXY}, DATA, "https_proxy"),
        ({"HTTPS_PROXY": PROXY, "https_proxy": PROXY}, DATA, "https_proxy"),
        ({"HTTPS_PROXY": "  "}, DATA, None),
        ({"HTTPS_PROXY": "", "ALL_PROXY": PROXY}, DATA, "ALL_PROXY"),
        ({"ALL_PROXY": "socks://x:1", "https_proxy": PROXY}, DATA, "https_proxy"),
        ({"all_proxy": PROXY}, "wss://stream.data.alpaca.markets/v2/iex", "all_proxy"),
        ({"HTTPS_PROXY": PROXY}, "wss://stream.data.alpaca.markets/v2/iex", "HTTPS_PROXY"),
        ({"HTTPS_PROXY": PROXY}, "http://gateway.example", None),
        ({"HTTP_PROXY": PROXY}, "http://gateway.example", "HTTP_PROXY"),
        ({"HTTP_PROXY": PROXY}, "ws://feed.example", "HTTP_PROXY"),
        ({"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, "http://gateway.example", None),
        ({"ALL_PROXY": PROXY}, "redis://db", None),
        ({"ALL_PROXY": PROXY}, "https://[::x", None),
        ({"ALL_PROXY": PROXY}, "paper", None),
    ],
)
def test_the_proxy_is_that_of_the_scheme(
    environ: Mapping[str, str], url: str, variable: str | None
) -> None:
    found = route(url, environ)
    assert found.variable == variable
    assert found.proxy == (PROXY if variable else None)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "localhost", "LOCALHOST.", "a.localhost",
     "[::ffff:127.0.0.1]", "0.0.0.0:80"],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "https", "ws", "wss"])
def test_this_machine_is_reached_directly_whatever_is_set(scheme: str, host: str) -> None:
    garbage = {"ALL_PROXY": "socks://127.0.0.1:1080/", "HTTPS_PROXY": "::", "HTTP_PROXY": "::"}
    assert route(f"{scheme}://{host}/x", garbage).proxy is None


@pytest.mark.parametrize(
    ("entries", "url", "direct"),
    [
        ("localhost,[::1]", DATA, False),
        ("alpaca.markets", DATA, True),
        (".alpaca.markets", DATA, True),
        ("*.alpaca.markets", DATA, True),
        ("a, data.ALPACA.markets ,b", DATA, True),
        ("paca.markets", DATA, False),
        ("data.alpaca.markets:443", DATA, True),
        ("data.alpaca.markets:8443", DATA, False),
        ("https://data.alpaca.markets", DATA, True),
        ("*", DATA, True),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3:99", True),
        ("[fd00::1]:99", "https://[fd00::1]:99", True),
        ("[fd00::1]", "https://[fd00::1]", True),
        ("fd00::/8", "https://[fd00::1]", True),
        ("[::1", DATA, False),
        ("%,:,[],://,.,10.0.0.0/99", DATA, False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_hosts_of_no_proxy_are_reached_directly(
    name: str, entries: str, url: str, direct: bool
) -> None:
    found = route(url, {"ALL_PROXY": PROXY, name: entries})
    assert (found.proxy is None) is direct


@pytest.mark.parametrize(
    ("value", "proxy"),
    [
        ("proxy.example:3128", PROXY),
        ("http://proxy.example:3128/", PROXY),
        ("https://proxy.example", "https://proxy.example:443"),
        ("http://me:s%40x@proxy.example", "http://me:s%40x@proxy.example:80"),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
    ],
)
def test_a_proxy_is_read_as_people_write_it(value: str, proxy: str) -> None:
    assert route(DATA, {"HTTPS_PROXY": value}).proxy == proxy


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    "value",
    ["::", "http://", "http://host:x", "http://host:99999", "ftp://host:21", "http://ho st:1",
     "http://h\u00f6st\u2028:1", "http://[::x", "http://me:hidden@:1"],
)  # fmt: skip
def test_a_proxy_that_cannot_be_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"variable {name} ") as caught:
        route(DATA, {name: value})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["socks://127.0.0.1:1080/", "socks5://127.0.0.1", "socks5h://127.0.0.1:1080"]
)
def test_a_socks_proxy_needs_packages_and_says_which(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"ALL_PROXY .*mdservice\[socks\]"):
        route(DATA, {"ALL_PROXY": value})
    monkeypatch.setattr(network.importlib.util, "find_spec", lambda _name: object())
    assert route(DATA, {"ALL_PROXY": value}).proxy == "socks5h://127.0.0.1:1080"


# ---- certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed one for localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key)]
    command += ["-out", str(cert), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    return cert, key


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "empty",
        "not PEM",
        "broken PEM",
        "a key",
        "NUL",
        "within a file",
        "a loop",
        "no permission",
    ],
)
def test_certificates_that_cannot_be_read_name_their_variable(
    name: str, kind: str, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    path = tmp_path / "ca.pem"
    if kind == "a key":
        path = certificate[1]
    elif kind == "NUL":
        path = Path("a\0b")
    elif kind == "within a file":
        path = certificate[0] / "ca.pem"
    elif kind == "a loop":
        path.symlink_to(path)
    elif kind == "no permission":
        if os.geteuid() == 0:
            pytest.skip("root may read every file")
        path.write_bytes(certificate[0].read_bytes())
        path.chmod(0)
    elif kind != "missing":
        path.write_bytes({
            "empty": b"",
            "not PEM": b"\xff\x00 nothing",
            "broken PEM": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        }[kind])  # fmt: skip
    with pytest.raises(ConfigurationError, match=f"variable {name} "):
        tls_context("http", {name: str(path)})


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_folder_of_certificates_has_to_be_one(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "certs"
    if kind == "a file":
        path.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="variable SSL_CERT_DIR "):
        tls_context("http", {"SSL_CERT_DIR": str(path)})


def test_a_folder_as_a_file_is_refused_only_for_ssl_cert_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="variable SSL_CERT_FILE "):
        ca_file({"SSL_CERT_FILE": str(tmp_path)})
    assert ca_file({"CURL_CA_BUNDLE": str(tmp_path)}) == (None, str(tmp_path))


def test_the_first_variable_that_is_set_counts(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    cert = str(certificate[0])
    missing = str(tmp_path / "missing")
    assert ca_file({"SSL_CERT_FILE": cert, "CURL_CA_BUNDLE": missing}) == (cert, None)
    assert ca_file({"SSL_CERT_DIR": str(tmp_path), "CURL_CA_BUNDLE": missing}) == (
        None,
        str(tmp_path),
    )
    assert ca_file({"SSL_CERT_FILE": " "}) == (None, None)
    assert tls_context("http", {}).get_ca_certs()


def test_certificates_are_read_once_until_they_change(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    path = tmp_path / "certificates"
    path.write_bytes(certificate[0].read_bytes())
    environ = {"SSL_CERT_FILE": str(path)}
    before = tls_context("http", environ)
    assert tls_context("http", environ) is before
    path.write_bytes(certificate[0].read_bytes() * 2)
    assert tls_context("http", environ) is not before
    path.write_bytes(b"no certificates")
    with pytest.raises(ConfigurationError, match="variable SSL_CERT_FILE "):
        tls_context("http", environ)


def test_http_and_websockets_have_contexts_of_their_own() -> None:
    # httpcore sets the protocols that its context offers.
    assert tls_context("http", {}) is tls_context("http", {})
    assert tls_context("http", {}) is not tls_context("websocket", {})


# ---- the client


async def get(client: HttpClient, url: str, **options: object) -> network.HttpAnswer:
    given: dict[str, object] = {"timeout_s": 5.0, "most_bytes": 1000, **options}
    try:
        return await client.get(url, **given)  # type: ignore[arg-type]
    finally:
        await client.aclose()


async def test_a_private_authority_is_trusted_by_the_variable(
    certificate: tuple[Path, Path],
) -> None:
    with open_web() as web:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        web.socket = context.wrap_socket(web.socket, server_side=True)
        url = web.url.replace("http:", "https:")
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            answer = await get(HttpClient(environ={name: str(certificate[0])}), url)
            assert answer.body == b"[]"
        with pytest.raises(HttpFailed, match="CERTIFICATE_VERIFY_FAILED"):
            await get(HttpClient(environ={}), url)
        # A client that has asked over http:// first still verifies.
        client = HttpClient(environ={})
        with open_web() as plain:
            await client.get(plain.url, timeout_s=5.0, most_bytes=1000)
        with pytest.raises(HttpFailed, match="CERTIFICATE_VERIFY_FAILED"):
            await get(client, url)


async def test_a_proxy_is_used_and_named_where_it_fails(web: Web) -> None:
    answer = await get(HttpClient(environ={"HTTP_PROXY": web.url}), "http://far.example/x?a=1")
    assert answer.body == b"[]"
    assert web.paths == ["http://far.example/x?a=1"]
    with pytest.raises(HttpFailed, match="proxy of ALL_PROXY"):
        await get(HttpClient(environ={"ALL_PROXY": webs.nowhere()}), "https://far.example/x")


async def test_a_bad_variable_is_a_request_that_failed_when_it_comes_later(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = HttpClient()
    client.prepare("http://far.example")
    monkeypatch.setenv("HTTP_PROXY", "::")
    with pytest.raises(HttpFailed, match="HTTP_PROXY") as caught:
        await get(client, "http://far.example")
    assert caught.value.kind == "url"


@pytest.mark.parametrize("url", ["", "paper", "http://", "http://[::x", "ftp://x", "http://\u2028"])
async def test_a_url_that_cannot_be_asked_is_a_request_that_failed(url: str) -> None:
    with pytest.raises(HttpFailed) as caught:
        await get(HttpClient(environ={}), url)
    assert caught.value.kind == "url"


async def test_a_port_that_cannot_be_is_a_request_that_failed() -> None:
    with pytest.raises(HttpFailed):
        await get(HttpClient(environ={}), "http://a:99999999")


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), ImportError("x"), OSError(5, "x"), ssl.SSLError("x"), RuntimeError("x"),
     httpx.UnsupportedProtocol("x"), UnicodeError("x"), TypeError("x"), httpx.PoolTimeout("x")],
)  # fmt: skip
async def test_whatever_the_library_raises_is_a_request_that_failed(error: Exception) -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(HttpFailed):
        await get(HttpClient(httpx.MockTransport(fail)), "http://host")


@pytest.mark.parametrize("size", [999, 1000, 1001, 100_000])
@pytest.mark.parametrize("compressed", [False, True])
async def test_an_answer_has_a_size_limit(web: Web, size: int, compressed: bool) -> None:
    web.body = gzip.compress(b"x" * size) if compressed else b"x" * size
    web.extra = {"Content-Encoding": "gzip"} if compressed else {}
    if size <= 1000:
        assert (await get(HttpClient(environ={}), web.url)).body == b"x" * size
    else:
        with pytest.raises(HttpFailed) as caught:
            await get(HttpClient(environ={}), web.url)
        assert caught.value.kind == "size"


async def test_compression_that_ends_too_early_is_a_request_that_failed(web: Web) -> None:
    web.body, web.extra = gzip.compress(b"x" * 900)[:-9], {"Content-Encoding": "gzip"}
    with pytest.raises(HttpFailed) as caught:
        await get(HttpClient(environ={}), web.url)
    assert caught.value.kind == "encoding"


def test_the_reason_of_a_failed_connection_is_in_words() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('::1', 9)")
    words = os.strerror(errno.ECONNREFUSED)
    assert root_cause(refused) == words
    every = OSError("all attempts to connect to localhost:9 failed")
    every.__cause__ = refused
    assert root_cause(every) == words
    assert root_cause(socket.gaierror(socket.EAI_NONAME, "unknown name")) == "unknown name"
    two = OSError("Multiple exceptions: [Errno 111] one, [Errno 111] another")
    assert root_cause(two) == str(two)


def test_another_errors_text_is_kept() -> None:
    answer = ValueError("the server answered HTTP 502")
    answer.__context__ = ConnectionResetError(errno.ECONNRESET, "reset")
    assert root_cause(answer) == "the server answered HTTP 502"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.EADDRINUSE, "in use"), "stop the program"),
        (OSError(errno.EADDRNOTAVAIL, "no such"), "use 127.0.0.1"),
        (socket.gaierror(socket.EAI_NONAME, "unknown name"), "use 127.0.0.1"),
        (UnicodeError("label too long"), "use 127.0.0.1"),
    ],
)
def test_an_address_that_cannot_be_listened_at_is_named_with_advice(
    error: Exception, advice: str
) -> None:
    text = str(cannot_listen("the simulator", "host:80", error))
    assert text.startswith("the simulator: cannot listen at host:80: ")
    assert advice in text
