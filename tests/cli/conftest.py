"""A command line of its own for each test: an empty working folder and environment."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mdservice.cli import cli, options
from mdservice.observability import logging as logs
from mdservice.observability.masking import Masker

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("MDSERVICE_", "ALPACA_", "APCA_", "REDIS_", "XDG_RUNTIME")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(logs, "_masker", Masker())
    # What a command that prints JSON lines changes for its whole process
    monkeypatch.setattr(options._Lines, "json", False)
    for module, name in (
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (threading, "excepthook"),
        (warnings, "showwarning"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    # Short, since a UNIX socket's path has about a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="md-") as folder:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.fixture
def invoke() -> Invoke:
    def run(*arguments: str, **environ: str) -> Result:
        return CliRunner().invoke(cli, arguments, env=environ, prog_name="mdservice")

    return run


@pytest.fixture
def config() -> Path:
    path = Path("other.toml")
    path.write_text("[mdservice]\nprice_ttl = 0\n")
    return path
