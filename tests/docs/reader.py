"""Somebody who follows a page to the letter, with nothing but a checkout."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from mdservice.errors import MDServiceError
from mdservice.settings import load_settings
from tests.conftest import free_port
from tests.docs.commands import commands_of, missing, same_structure
from tests.docs.fences import ROOT, Block
from tests.docs.shell import LIMIT_S, DoesNotWork, Running, Shell
from tests.docs.stand_for import ASKS, MAKES_SERVICE, PORTS, Places, in_place

EXAMPLES = {path: path.read_text() for path in (ROOT / "docs" / "examples").glob("*.py")}
ANSWER_LIMIT_S, ASK_AGAIN_S = 60.0, 0.2
GENERATED = "docs/reference/"
"""Pages whose payloads are the program's own: made from its code, and compared with it."""
LINES_OF_A_PROGRAM = 3
"""So many lines show that a program that does not end is at work."""


class Reader:
    """Follows one page, block by block."""

    def __init__(self, shell: Shell, places: Places) -> None:
        self.shell = shell
        self._places = places
        self._programs = 0
        self._last: Running | None = None
        self._ran: list[str] = []

    def follow(self, blocks: list[Block]) -> None:
        """Do what the page says.

        Raises:
            DoesNotWork: Naming the block.
        """
        for block in blocks:
            try:
                self._do(block)
            except (DoesNotWork, MDServiceError, ValueError) as exc:
                raise DoesNotWork(f"{block}: {exc}") from exc
        self.shell.check_lasting()
        self._check_examples(blocks)

    def _do(self, block: Block) -> None:
        if block.language in {"sh", "console"}:
            for command in commands_of(block.language, block.text):
                self._ran.append(command.text)
                text = in_place(command.text, self._places)
                shown = tuple(in_place(line, self._places) for line in command.shown)
                self._last = self._run(text, shown)
                if MAKES_SERVICE.search(text) and self._last.process.poll() is None:
                    self._wait_for_prices()
        elif block.language == "python" and not example_of(block):
            self._run_program(in_place(block.text, self._places))
        elif block.language == "json":
            self._compare(block)
        elif block.language == "toml":
            read_settings(in_place(block.text, self._places))

    def _run(self, text: str, shown: tuple[str, ...]) -> Running:
        """Run it; what only asks is asked again while the answer is not there yet."""
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while True:
            try:
                return self.shell.run(text, lambda running: self._shows(running, shown))
            except DoesNotWork:
                if not ASKS.search(text) or time.monotonic() > deadline:
                    raise
            time.sleep(ASK_AGAIN_S)

    def _shows(self, running: Running, shown: tuple[str, ...]) -> bool:
        left = missing(shown, running.output)
        if left and running.process.poll() is not None:
            raise DoesNotWork(f"{running.text!r} does not show {left}: {running.output}")
        return not left

    def _wait_for_prices(self) -> None:
        """As somebody does who reads on before the next step."""
        socket_of_service = self.shell.folder / "mdservice.sock"
        deadline = time.monotonic() + LIMIT_S
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_of_service))) as client:
            while not _has_prices(client):
                if time.monotonic() > deadline:
                    raise DoesNotWork("no prices come")
                time.sleep(0.02)

    def _compare(self, block: Block) -> None:
        if block.page.startswith(GENERATED):
            json.loads(block.text)
            return
        if self._last is None:
            raise DoesNotWork("no command stands before it")
        shown, deadline = json.loads(block.text), time.monotonic() + ANSWER_LIMIT_S
        while not same_structure(shown, told := json.loads(self._last.stdout)):
            if time.monotonic() > deadline:
                raise DoesNotWork(f"{self._last.text!r} answers in another form: {told}")
            time.sleep(ASK_AGAIN_S)
            self._last = self.shell.run(self._last.text)

    def _run_program(self, text: str) -> None:
        self._programs += 1
        name = f"program_{self._programs}.py"
        (self.shell.folder / name).write_text(text)
        if "FastAPI()" in text:  # it defines an application: serve it
            self._serve(name.removesuffix(".py"))
            return
        running = self.shell.run(
            f"{sys.executable} {name}",
            lambda r: r.process.poll() is not None or r.stdout.count("\n") >= LINES_OF_A_PROGRAM,
        )
        _check_comment(text, running.stdout)
        running.stop()

    def _serve(self, module: str) -> None:
        with ExitStack() as stack:
            port = free_port(stack)
            running = self.shell.run(f"{sys.executable} -m uvicorn --port {port} {module}:app")
            url = f"http://127.0.0.1:{port}/api/v1/positions/pnl/realtime"
            rows = json.loads(self.shell.run(f"curl -s {url}").stdout)["positions"]
            if not rows:
                raise DoesNotWork(f"no position is served: {running.output}")
            running.stop()

    def _check_examples(self, blocks: list[Block]) -> None:
        """Every example that a page shows is run by it."""
        for block in blocks:
            path = example_of(block) if block.language == "python" else None
            if path is not None and not any(path.stem in text for text in self._ran):
                raise DoesNotWork(f"{block}: the page shows {path.name} and does not run it")


def example_of(block: Block) -> Path | None:
    """The file of docs/examples that a block shows, whole or a part of it."""
    lines = block.text.strip("\n") + "\n"
    return next(
        (path for path, text in EXAMPLES.items() if f"\n{lines}" in f"\n{text}"),
        None,
    )


def _has_prices(client: httpx.Client) -> bool:
    """Whether each symbol that is wanted has one; not before the service listens."""
    try:
        prices = client.get("http://localhost/api/v1/market-data/prices").json()["prices"]
        status = client.get("http://localhost/status").json()
        is_ready = client.get("http://localhost/health/ready").is_success
    except httpx.TransportError:
        return False
    return is_ready and len(prices) >= status["symbols"]


def read_settings(text: str) -> None:
    """A block of TOML is a file of settings, whose names and values exist."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        assert tomllib.loads(text)
        load_settings(Path(file.name), {}, {})


def _check_comment(text: str, stdout: str) -> None:
    """A dictionary in a comment behind a print has the fields of what is printed."""
    found = re.search(r"^# (\{.*?\})$", re.sub(r"\n# +", " ", text), re.MULTILINE | re.DOTALL)
    if found:
        shown, told = ast.literal_eval(found[1]), ast.literal_eval(stdout.splitlines()[0])
        if not same_structure(shown, told):
            raise DoesNotWork(f"it prints another form: {told}")


@contextmanager
def open_reader(server: Any, simulated_account: tuple[str, str]) -> Iterator[Reader]:
    """A reader in a fresh checkout, with a Redis and an account; nothing is left of it."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="doc-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for path in ROOT.iterdir():
            if path.name not in {".git", ".venv", "mdservice.toml"} and not path.name.startswith(
                "."
            ):
                (folder / path.name).symlink_to(path)
        (folder / ".venv").symlink_to(sys.prefix)
        server.start()
        stack.callback(server.close)
        ports = {named: str(free_port(stack)) for named in PORTS}
        shell = Shell(folder, _environment(folder, ports))
        stack.callback(shell.close)
        yield Reader(shell, Places(server.url, *simulated_account, ports))


def _environment(folder: Path, ports: dict[str, str]) -> dict[str, str]:
    """A login's, without the environment of the tests: a page has to name what it needs."""
    own = f"{sys.prefix}/bin"
    path = [part for part in os.environ.get("PATH", "").split(os.pathsep) if part != own]
    coverage = {k: v for k, v in os.environ.items() if k.startswith("COVERAGE_")}
    return {
        **coverage,
        "PATH": os.pathsep.join(path),
        "HOME": str(folder),
        "PWD": str(folder),
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": str(folder),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MDSERVICE_LOG_FORMAT": "console",  # as on the reader's terminal
        "MDSERVICE_GATEWAY_HTTP": f"127.0.0.1:{ports['8002']}",
        "MDSERVICE_RELAY": f"127.0.0.1:{ports['8765']}",
    }
