"""The parsers of settings: each takes text or a TOML value, and returns the checked value.

A parser raises :class:`ValueError` with the reason. The reason quotes a value only if it cannot
contain a secret. It never quotes text that looks like a URL or a login.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import attrs

from mdservice.errors import InvalidChannel, InvalidSymbol
from mdservice.model.feeds import FeedName, parse_channels
from mdservice.model.kinds import KINDS
from mdservice.model.symbol import parse_symbols
from mdservice.observability.masking import quoted
from mdservice.settings.feeds import STREAM_HOST, STREAM_PATHS, is_alpacas, url_variable

__all__ = [
    "EVERY_HOST",
    "SOCKET_PATH_BYTES",
    "SeveralServers",
    "api_base",
    "default_log_format",
    "feed_url",
    "host_and_port",
    "is_loopback",
    "one_of",
    "parse_address_or_off",
    "parse_alerts",
    "parse_channel_list",
    "parse_event_log",
    "parse_file",
    "parse_folder_or_off",
    "parse_group",
    "parse_http_address",
    "parse_key_pairs",
    "parse_key_prefix",
    "parse_limits",
    "parse_on_trip",
    "parse_optional",
    "parse_positions",
    "parse_redis_url",
    "parse_secret",
    "parse_socket",
    "parse_symbol_list",
    "parse_url",
    "real_number",
    "split_several",
    "text",
    "trading_stream_url",
    "url",
    "whole_number",
]

Parser = Callable[[object], object]

_SECRET = re.compile(r"[!-~]{1,512}", re.ASCII)
EVERY_HOST = ("0.0.0.0", "::")  # noqa: S104 - compared with
"""A server at one of these listens at every address of the machine."""
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""The size of the path in ``sockaddr_un``, without its closing zero."""
_KEY_PREFIX = re.compile(r"""[^\x00-\x20\x7f-\U0010ffff*?\[\]^\\{}"']{0,64}""")
_GROUP = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_QUOTES = "\"'"
_OWN_KEYS = (*(kind.key_prefix for kind in KINDS if kind.has_key), "mdservice:")
_ACTIONS = "suspend_trade,cancel_orders"
_OWN_STREAMS = tuple(kind.stream.name for kind in KINDS if kind.stream is not None)


def text(value: object) -> str:
    """Any text, without surrounding blanks."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError("must be text, and not empty")


def parse_optional(parse: Parser) -> Parser:
    """``parse``, with None for a setting that is off."""

    def parse_unless_none(value: object) -> object:
        return None if value is None else parse(value)

    return parse_unless_none


def one_of(*choices: str) -> Callable[[object], str]:
    """One of these words."""

    def parse_choice(value: object) -> str:
        given = str(value)
        if given.strip() not in choices:
            raise ValueError(f"{quoted(given)} is not one of {', '.join(choices)}")
        return given.strip()

    return parse_choice


def parse_switch(value: object) -> bool:
    """On or off, in the usual words."""
    word = str(value).strip().lower()
    if word in ("on", "true", "yes", "1"):
        return True
    if word in ("off", "false", "no", "0"):
        return False
    raise ValueError(f"{quoted(str(value))} is not on or off")


def parse_url(value: object, *schemes: str) -> str:
    """A URL of one of these schemes, without a ``/`` at its end.

    Raises:
        ValueError: The reason, without any part of the URL.
    """
    given = text(value)
    parts = _split(given, schemes)
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("does not name a socket: write unix:///run/redis.sock")
        return given
    if not parts.hostname and parts.scheme != "redis":
        raise ValueError(f"does not name a host: write {parts.scheme}://host")
    return given.rstrip("/") if parts.hostname and not parts.query else given


_MALFORMED = (
    "is not a URL: its host or port is malformed (in a password, '/', '#', '?' and '@' must be "
    "written as %2F, %23, %3F and %40)"
)
_REDIS = ("redis", "rediss", "unix")
_SEVERAL_REDIS = {
    "redis+sentinel": 26379,
    "rediss+sentinel": 26379,
    "redis+cluster": 6379,
    "rediss+cluster": 6379,
}
"""The schemes of URLs with several servers, each with the usual port."""


@attrs.frozen
class SeveralServers:
    """The parts of a URL that names several servers.

    Attributes:
        scheme: In lower case.
        login: User and password as the URL has them; None without a login.
        servers: Host and port of each.
        path: The parts of its path, decoded.
        tls: Whether the connections are encrypted: by the scheme, or by ``ssl=true``.
        query: The other arguments of its query.
    """

    scheme: str
    login: str | None = attrs.field(repr=False)
    servers: tuple[tuple[str, int], ...]
    path: tuple[str, ...]
    tls: bool
    query: Mapping[str, str] = attrs.field(repr=False)


def split_several(url: str) -> SeveralServers | None:
    """The parts of a Redis URL with several servers; None if its scheme is for one server.

    ``redis+sentinel://me:secret@a:26379,b/prices/2``: two servers, ``b`` at the usual port.

    Raises:
        ValueError: The reason, without any part of the URL.
    """
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    usual_port = _SEVERAL_REDIS.get(scheme) if colon else None
    if usual_port is None:
        return None
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    login, at, hosts = authority.rpartition("@")
    if "@" in login + path or "#" in url:
        raise ValueError(_MALFORMED)
    servers = []
    for host in hosts.split(","):
        parts = _split(f"x://{host}", ("x",))
        if not parts.hostname:
            raise ValueError(f"does not name a host: write {scheme}://host:port,host:port")
        servers.append((parts.hostname, parts.port or usual_port))
    names = tuple(unquote(part) for part in path.rstrip("/").split("/")) if path else ()
    if scheme.endswith("cluster"):
        names = () if names == ("",) else names
    elif len(names) not in (1, 2) or not names[0]:
        raise ValueError(f"does not name the service: write {scheme}://host:port/service")
    elif names[1:] and not names[1].isdecimal():
        raise ValueError(f"has a database that is no number: write {scheme}://host/service/0")
    arguments = dict(parse_qsl(query, keep_blank_values=True))
    ssl = arguments.pop("ssl", "false")
    if ssl not in ("true", "false"):
        raise ValueError("has an ssl that is neither true nor false")
    tls = ssl == "true" or scheme.startswith("rediss")
    return SeveralServers(scheme, login if at else None, tuple(servers), names, tls, arguments)


def parse_redis_url(value: object) -> str:
    """The URL of a Redis server, or of those that know it.

    Raises:
        ValueError: The reason, without any part of the URL.
    """
    given = text(value)
    if split_several(given) is not None:
        return given
    scheme = given.partition("://")[0].lower()
    if scheme in _REDIS:
        return parse_url(given, *_REDIS)
    allowed = " or ".join(f"{scheme}://" for scheme in (*_REDIS, *_SEVERAL_REDIS))
    raise ValueError(f"must be a URL that starts with {allowed}")


def _split(given: str, schemes: Sequence[str]) -> SplitResult:
    allowed = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:
        # urllib's message would quote a part of the URL, perhaps of its password.
        raise ValueError(_MALFORMED) from None
    if parts.scheme not in schemes or not given.lower().startswith(f"{parts.scheme}://"):
        raise ValueError(f"must be a URL that starts with {allowed}")
    if port == 0:
        raise ValueError("has port 0")
    return parts


def url(*schemes: str, as_written: bool = False) -> Callable[[object], str]:
    """A URL of one of these schemes; a ``/`` at its end is kept only where it is as written."""

    def parse_given(value: object) -> str:
        parsed = parse_url(value, *schemes)
        return text(value) if as_written else parsed

    return parse_given


def api_base(*, wrong_hosts: Sequence[str], instead: str) -> Callable[[object], str]:
    """The base URL of a REST API of Alpaca. A trailing ``/v2``, as in the dashboard, is removed.

    Args:
        wrong_hosts: Alpaca's hosts of the other API.
        instead: The setting for these hosts.
    """

    def parse_base(value: object) -> str:
        given = parse_url(value, "http", "https").rstrip("/")
        if (urlsplit(given).hostname or "").lower() in wrong_hosts:
            raise ValueError(f"is the host of another API: it belongs to {instead}")
        while given.lower().endswith("/v2"):
            given = given[:-3].rstrip("/")
        return given

    return parse_base


def trading_stream_url(value: object) -> str:
    """The URL of the stream of trade updates, which market data has not."""
    given = parse_url(value, "ws", "wss")
    parts = urlsplit(given)
    if is_alpacas(given) and (".data." in (parts.hostname or "") or not parts.path.strip("/")):
        raise ValueError(
            "does not name the stream of trade updates: write the whole URL, such as "
            "wss://paper-api.alpaca.markets/stream, or leave it out"
        )
    return given


def feed_url(feed: FeedName) -> Callable[[object], str]:
    """The URL of a feed's websocket. A URL of Alpaca must name a stream of this feed."""
    example = STREAM_HOST + next(iter(STREAM_PATHS[feed].values()))
    owners = {
        path: url_variable(name)
        for name, paths in STREAM_PATHS.items()
        if name != feed
        for path in paths.values()
    }

    def parse_feed_url(value: object) -> str:
        given = parse_url(value, "ws", "wss")
        if not is_alpacas(given):
            return given
        path = urlsplit(given).path.rstrip("/")
        if path in owners:
            raise ValueError(f"names a stream of another kind: it belongs to {owners[path]}")
        if path.strip("/") in ("", "v2", "v1beta1", "v1beta3", "v1beta3/crypto"):
            raise ValueError(
                f"does not name a stream: write the whole URL, such as {example}, or leave it out"
            )
        return given

    return parse_feed_url


def whole_number(at_least: int, at_most: int) -> Callable[[object], int]:
    """A whole number within limits."""

    def parse_whole(value: object) -> int:
        number: int | None = None
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip(), re.ASCII):
            number = int(value)
        if number is None:
            raise ValueError(f"{quoted(str(value))} is not a whole number")
        if not at_least <= number <= at_most:
            raise ValueError(f"{number} is not between {at_least} and {at_most}")
        return number

    return parse_whole


def real_number(at_most: float) -> Callable[[object], float]:
    """A number above 0."""

    def parse_real(value: object) -> float:
        try:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError  # noqa: TRY004, TRY301 - a bad value, to the caller
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{quoted(str(value))} is not a number") from None
        if not math.isfinite(number) or not 0 < number <= at_most:
            raise ValueError(f"{quoted(str(value))} is not above 0 and at most {at_most:g}")
        return number

    return parse_real


def per_cent(at_most: float) -> Callable[[object], float]:
    """A percentage, 0 included."""
    above_0 = real_number(at_most)

    def parse_per_cent(value: object) -> float:
        given = value.strip().removesuffix("%") if isinstance(value, str) else value
        try:
            if not isinstance(given, bool) and float(given) == 0:  # type: ignore[arg-type]
                return 0.0
        except (TypeError, ValueError, OverflowError):
            pass  # the error below reports it
        try:
            return above_0(given)
        except ValueError as exc:
            raise ValueError(str(exc).replace("is not above 0", "is not 0, or above")) from None

    return parse_per_cent


def parse_secret(value: object) -> str:
    """A key, secret or token: visible ASCII, because an HTTP header carries it."""
    if not isinstance(value, str) or not _SECRET.fullmatch(value.strip()):
        raise ValueError(
            "must be text of visible ASCII characters without blanks (the value is not shown)"
        )
    given = value.strip()
    if given[0] in _QUOTES or given[-1] in _QUOTES:
        raise ValueError(
            "has a quotation mark at one end: write it without quotes (the value is not shown)"
        )
    return given


def parse_key_pairs(value: object) -> dict[str, str]:
    """``key:secret,key:secret``, a list of such pairs, or secrets by their keys.

    A key has no colon, and neither has a comma where all are one text.
    """
    pairs = list(value.items()) if isinstance(value, Mapping) else _pairs(value)
    found: dict[str, str] = {}
    for number, (key, secret) in enumerate(pairs, 1):
        try:
            parsed = parse_secret(key)
            if ":" in parsed:
                raise ValueError("must be without a colon (the value is not shown)")  # noqa: TRY301 - reported with its pair
            if parsed in found:
                raise ValueError("has the key of an earlier pair")  # noqa: TRY301 - likewise
            found[parsed] = parse_secret(secret)
        except ValueError as exc:
            raise ValueError(f"pair {number} of KEY:SECRET: {exc}") from None
    return found


def _pairs(value: object) -> list[tuple[str, str]]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, Sequence) or not value:
        raise ValueError("must name pairs of KEY:SECRET, with commas between")
    parts = (str(pair).partition(":") for pair in value)
    return [(key, secret) for key, _colon, secret in parts]


def parse_symbol_list(value: object) -> tuple[str, ...]:
    """``AAPL,MSFT``, or a list of symbols; ``*`` is every symbol of the feed."""
    try:
        return parse_symbols(_texts(value, "symbol", "AAPL,MSFT"))
    except InvalidSymbol as exc:
        raise ValueError(str(exc)) from exc


def parse_channel_list(value: object) -> tuple[str, ...]:
    """``quotes,trades``, or a list of channels in Alpaca's names; at least one."""
    try:
        channels = parse_channels(_texts(value, "channel", "quotes,trades"))
    except InvalidChannel as exc:
        raise ValueError(str(exc)) from exc
    if not channels:
        raise ValueError("names no channel: write at least one, such as quotes")
    return channels


def _texts(value: object, what: str, example: str) -> list[str]:
    """The texts of a list, or those between the commas of a text."""
    if isinstance(value, str):
        return [part for part in value.split(",") if part.strip()]
    if not isinstance(value, Sequence):
        raise ValueError(f'must be a list of {what}s, such as "{example}"')  # noqa: TRY004 - a bad value, to the caller
    for part in value:
        if not isinstance(part, str):
            raise ValueError(f"{quoted(str(part))} is not a {what}: {what}s are text")  # noqa: TRY004 - a bad value, to the caller
    return list(value)


def parse_positions(value: object) -> str:
    """``none``, ``alpaca``, an ``http(s)://`` URL, kept as it is written, or ``file:PATH``."""
    word = text(value)
    if word in ("none", "alpaca"):
        return word
    if word.startswith("file:"):
        if not word.removeprefix("file:").strip("/ "):
            raise ValueError("does not name a file: write file:PATH")
        return word
    if "://" in word:
        parse_url(word, "http", "https")
        return word  # unchanged, because the "/" at the end of a path may matter
    raise ValueError(
        f"{quoted(word)} is not one of none, alpaca, an http:// or https:// URL, file:PATH"
    )


def parse_alerts(value: object) -> tuple[str, ...]:
    """``AAPL pnl < -500; total pct < -2``, or a list of such rules."""
    return _rules(value, "alert rule")


def parse_limits(value: object) -> tuple[str, ...]:
    """``AAPL qty > 100; total day_pnl < -2000``, or a list of such rules."""
    return _rules(value, "limit")


def _rules(value: object, what: str) -> tuple[str, ...]:
    from mdservice.pnl.rules import parse_rule

    rules = value.split(";") if isinstance(value, str) else value
    if not isinstance(rules, Sequence):
        raise ValueError("must be a list of rules, such as 'AAPL pnl < -500'")  # noqa: TRY004 - a bad value, to the caller
    found = [str(rule).strip() for rule in rules if str(rule).strip()]
    for rule in found:
        parse_rule(rule, what)
    return tuple(found)


def parse_on_trip(value: object) -> tuple[str, ...]:
    """``suspend_trade,cancel_orders``, or a list of these words; ``off`` is none."""
    words = tuple(dict.fromkeys(word.strip() for word in _texts(value, "action", _ACTIONS)))
    if words == ("off",):
        return ()
    for word in words:
        if word not in _ACTIONS.split(","):
            raise ValueError(f"{quoted(word)} is not one of {_ACTIONS.replace(',', ', ')}")
    return words


def parse_key_prefix(value: object) -> str:
    """The prefix of every name in Redis, such as ``desk1:``, or empty.

    Blanks and quotes break lines of ``ACL SETUSER`` and of Redis's configuration. Asterisks,
    question marks, square brackets and backslashes are wildcards in ``SCAN`` and in access rules.
    Braces choose a cluster's hash slot.
    """
    if not isinstance(value, str):
        raise ValueError("must be text, such as desk1:")  # noqa: TRY004 - a bad value, to the caller
    if not _KEY_PREFIX.fullmatch(value.strip()):
        raise ValueError(
            f"{quoted(value)} must be at most 64 visible ASCII characters, without blanks, "
            "quotes, braces and wildcards (* ? [ ] ^ \\), such as desk1:"
        )
    if value.strip().startswith(_OWN_KEYS):
        raise ValueError(
            f"{quoted(value)} begins like the keys of a service without a prefix "
            f"({', '.join(_OWN_KEYS)}…): choose another one, such as desk1:"
        )
    return value.strip()


def parse_group(value: object) -> str | None:
    """The name of a standby group, such as ``desk1``; ``off`` for none."""
    name = text(value)
    if name.lower() == "off":
        return None
    if not _GROUP.fullmatch(name):
        raise ValueError(
            f"{quoted(name)} must be at most 64 ASCII letters, digits, dots, dashes and "
            "underscores, such as desk1; or off"
        )
    return name


def parse_event_log(value: object) -> str:
    """The name of a Redis stream, which must differ from the service's own keys."""
    name = text(value)
    if not name.isprintable() or len(name) > 512:  # noqa: PLR2004 - a sane length for a key
        raise ValueError("must be a printable name of at most 512 characters")
    if name.startswith(_OWN_KEYS) or name in _OWN_STREAMS:
        own = ", ".join((*_OWN_STREAMS, *_OWN_KEYS))
        raise ValueError(
            f"{quoted(name)} is among this service's own keys ({own}…): "
            "choose another name, such as price.log"
        )
    return name


def parse_socket(value: object) -> Path:
    """An absolute path, short enough for the address of a UNIX socket."""
    path = parse_file(value)
    encoded = os.fsencode(path)
    if b"\0" in encoded or len(encoded) > SOCKET_PATH_BYTES:
        raise ValueError(
            f"the path has {len(encoded)} bytes; a UNIX socket's may have {SOCKET_PATH_BYTES}: "
            "choose a shorter one"
        )
    return path


def parse_file(value: object) -> Path:
    """The absolute path of a file, which need not be there."""
    given = value if isinstance(value, Path) else Path(text(value))
    try:
        return given.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{quoted(str(given))} names a home folder that is not known") from None


def parse_folder_or_off(value: object) -> Path | None:
    """The absolute path of a folder, which need not be there, or ``off``."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "off"):
        return None
    return parse_file(value)


def parse_http_address(value: object) -> str:
    """``host:port``; an IPv6 host in brackets."""
    given = text(value)
    host_and_port(given)
    return given


def parse_address_or_off(value: object) -> str | None:
    """``host:port``, or ``off``."""
    if value is None or text(value).lower() == "off":
        return None
    return parse_http_address(value)


def default_log_format() -> str:
    """``console`` if stderr is a terminal, else ``json``."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return "console" if terminal else "json"


def host_and_port(address: str) -> tuple[str, int]:
    """``127.0.0.1:8000`` → ``("127.0.0.1", 8000)``; the brackets of ``[::1]`` are removed.

    Raises:
        ValueError: It has another format.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^\s:/@\[\]]+):(\d{1,5})", address, re.ASCII)
    if match is None or int(match[2]) > 65535:  # noqa: PLR2004 - the highest port
        raise ValueError(f"{quoted(address)} is not host:port, such as 127.0.0.1:8000")
    return match[1].strip("[]"), int(match[2])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
