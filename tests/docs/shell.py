"""A reader's terminals: commands one after the other, in one folder, on one environment."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from tests.docs.stand_for import LASTING, MAKES_SERVICE

LIMIT_S = 90.0
"""For one command, on a machine that is busy with everything else."""
_POLL_S = 0.02
_STOPS = ((signal.SIGINT, 6.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0))

_THEN_TELL = '\nstatus=$?\nenv -0 >"$READER_STATE"\nexit $status\n'
"""Behind every command: what it has left in the environment is there for the next one."""


class DoesNotWork(Exception):
    """A command of a page does not do what the page says."""


@attrs.define
class Running:
    """A command that was started, with all that it has started."""

    text: str
    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    was_stopped: bool = False

    @property
    def stdout(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def output(self) -> str:
        return self.stdout + self.err.read_text(errors="replace")

    @property
    def lasting(self) -> str | None:
        """What it says when it is at work, where it runs until it is stopped."""
        return next((said for what, said in LASTING.items() if re.search(what, self.text)), None)

    def stop(self) -> None:
        """As Ctrl-C does; then less politely."""
        self.was_stopped = True
        for number, within_s in _STOPS:
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)  # a group of its own: see Shell
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(within_s)


class Shell:
    """Runs commands as a reader does who opens another terminal for what does not end.

    Args:
        folder: Where the reader is; short, since it holds UNIX sockets.
        env: The first environment.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.env = dict(env)
        self.started: list[Running] = []
        self._logs = folder / ".said"
        self._logs.mkdir()

    def run(self, text: str, until: Callable[[Running], bool] = lambda _: True) -> Running:
        """Run a command to its end, or until it is at work and the condition holds.

        Raises:
            DoesNotWork: It failed, or took too long.
        """
        if MAKES_SERVICE.search(text):
            self.stop_services()
        running = self._start(text)
        deadline = time.monotonic() + LIMIT_S
        while not (running.process.poll() is not None or self._is_at_work(running, until)):
            if time.monotonic() > deadline:
                raise DoesNotWork(f"{text!r} does not come to it: {running.output}")
            time.sleep(_POLL_S)
        code = running.process.poll()
        if code is not None:
            if code != 0 or not until(running):
                raise DoesNotWork(f"{text!r} ended with {code}: {running.output}")
            self._go_on_from(running)
        return running

    def _start(self, text: str) -> Running:
        number = len(self.started)
        out, err = self._logs / f"out-{number}", self._logs / f"err-{number}"
        env = {**self.env, "READER_STATE": str(self._logs / f"env-{number}")}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                ["bash", "-c", text + _THEN_TELL],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                cwd=self.env.get("PWD", self.folder), env=env, start_new_session=True,
            )  # fmt: skip
        running = Running(text, process, out, err)
        self.started.append(running)
        return running

    def _is_at_work(self, running: Running, until: Callable[[Running], bool]) -> bool:
        said = running.lasting
        return (
            said is not None
            and re.search(said, running.output, re.MULTILINE) is not None
            and until(running)
        )

    def _go_on_from(self, running: Running) -> None:
        state = self._logs / running.out.name.replace("out", "env")
        if state.exists():
            pairs = (item.partition("=") for item in state.read_text().split("\0") if item)
            self.env = {name: value for name, _, value in pairs if name != "READER_STATE"}

    def stop_services(self) -> None:
        """As a reader does before starting another."""
        for running in self.started:
            if MAKES_SERVICE.search(running.text):
                running.stop()

    def check_lasting(self) -> None:
        """What runs until it is stopped still runs.

        Raises:
            DoesNotWork: One has failed meanwhile.
        """
        for running in self.started:
            if not running.was_stopped and running.process.poll():
                raise DoesNotWork(f"{running.text!r} has failed: {running.output}")

    def close(self) -> None:
        """End everything that was started, the last first."""
        for running in reversed(self.started):
            running.stop()
