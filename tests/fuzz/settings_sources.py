"""Settings from a file and the environment: only a ``ConfigurationError`` without any secret."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mdservice.errors import ConfigurationError
from mdservice.settings import SETTINGS, load_settings

__all__ = ["run", "seeds"]

_FOLDER: Final = tempfile.TemporaryDirectory(prefix="fuzz-settings-")
_SECRET: Final = "HIDDEN"
"""A text that only secrets have."""


def run(data: bytes) -> None:
    """The file, a line of zeros, and then lines of ``VARIABLE=value``."""
    content, _, lines = data.partition(b"\n\x00\n")
    file = Path(_FOLDER.name) / "mdservice.toml"
    file.write_bytes(content)
    environ = {}
    for line in lines.split(b"\n"):
        name, equals, value = line.partition(b"=")
        if equals:
            # As os.environ has it, where no value has a zero.
            environ[name.decode("utf-8", "surrogateescape")] = value.replace(b"\0", b"").decode(
                "utf-8", "surrogateescape"
            )
    try:
        settings = load_settings(file, {}, environ)
        shown = [repr(settings), str(settings.shown())]
        try:
            settings.require_runnable()
        except ConfigurationError as error:
            shown.append(str(error))
    except ConfigurationError as error:
        shown = [str(error)]
    _check_hidden(content + lines, shown)


def _check_hidden(given: bytes, shown: list[str]) -> None:
    """No secret is shown that is one by the name of its setting."""
    for name in (b"secret_key", b"API_TOKEN", b"api_token", b"ALPACA_SECRET_KEY"):
        for value in (b' = "' + _SECRET.encode(), b"=" + _SECRET.encode()):
            # Where the fuzzer has moved the text elsewhere, it is no secret.
            if name + value in given and given.count(_SECRET.encode()) == 1:
                assert all(_SECRET not in text for text in shown), shown


def seeds() -> Iterator[bytes]:
    """Each setting in the file and in the environment."""
    values = {
        "symbols": '["AAPL", "BTC/USD"]',
        "channels": '"quotes,trades"',
        "limits": '"AAPL qty > 100; total pnl < -5 trip"',
        "alerts": '["* stale"]',
        "redis_url": '"redis://user:HIDDEN@host:6379/1"',
        "relay_keys": '{key = "HIDDEN"}',
        "positions": '"https://user:HIDDEN@host/positions"',
        "price_ttl": "300",
        "max_spread": "10.5",
        "journal": '"/tmp/journal"',
        "http": '"[::1]:8001"',
        "relay": '"off"',
        "renew_prices": "true",
    }
    for info in SETTINGS:
        value = values.get(info.name, '"HIDDEN"' if info.secret else '"1"')
        yield f"[mdservice]\n{info.name} = {value}\n".encode()
        yield f"\n\x00\n{info.environment[0]}={value.strip(chr(34))}\n".encode()
    yield b'[mdservice]\nsecret_key = "HIDDEN"\n[other]\na = 1\n'
    yield b"[mdservice]\n\n\x00\nMDSERVICE_UNKNOWN=1\nMDSERVICE_PORT=tcp://10.0.0.1:80\n"
