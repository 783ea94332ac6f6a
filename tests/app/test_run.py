"""What ``mdservice run`` does and says at its start."""

from __future__ import annotations

import resource

import attrs
import pytest

from mdservice.app.run import raise_file_limit, relay_line
from mdservice.settings import Settings


def test_the_relays_url_is_that_of_the_stock_feed() -> None:
    line = relay_line(attrs.evolve(Settings(), feed="simulator"))
    assert line is not None
    assert line.split()[:2] == ["relay", "ws://127.0.0.1:8765/v2/iex"]
    line = relay_line(Settings(feed="boats", relay="127.0.0.1:40123"))
    assert line is not None
    assert line.split()[1] == "ws://127.0.0.1:40123/v1beta1/boats"


def test_with_a_certificate_the_relays_url_is_wss() -> None:
    settings = Settings(relay="[::1]:8765", relay_cert="cert.pem", relay_key_file="key.pem")
    line = relay_line(settings)
    assert line is not None
    assert line.split()[1] == "wss://[::1]:8765/v2/iex"


def test_an_address_of_every_host_is_no_url_for_other_machines() -> None:
    line = relay_line(Settings(relay="0.0.0.0:8765", relay_keys="k:s"))
    assert line is not None
    assert "this machine's name" in line


def test_a_relay_that_is_off_is_not_mentioned() -> None:
    for settings in (Settings(relay=None), Settings(feed="iex")):
        assert relay_line(settings) is None


def test_the_process_may_open_as_many_files_as_it_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {"now": (1_024, 524_288)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, now: limits.update(now=now))
    raise_file_limit()
    assert limits["now"] == (65_536, 524_288)
    limits["now"] = (1_024, 4_096)
    raise_file_limit()
    assert limits["now"] == (4_096, 4_096)
    limits["now"] = (100_000, resource.RLIM_INFINITY)
    raise_file_limit()
    assert limits["now"] == (100_000, resource.RLIM_INFINITY)
