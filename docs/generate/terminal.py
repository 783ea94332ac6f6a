"""Record how the program looks in a terminal: ``just docs-pictures``, which needs tmux.

The real ``mdservice run`` and ``mdservice watch`` run in a tmux of their own; what stands on its
screens becomes a picture.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

__all__ = ["picture_of"]

_PICTURES: Final = Path(__file__).parents[1] / "pictures"
_FOLDER: Final = Path(tempfile.gettempdir()) / "mdservice"
"""Where the sockets are: their paths stand on the screen."""
_WAIT_S: Final = 90.0
_LOOK_S: Final = 0.25
_SETTLE_S: Final = 4.0

_SVG: Final = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font: {char_height}px/{line_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}}
.{unique_id}-title {{ font: bold 16px system-ui, Helvetica, Arial, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own loads a font from another host."""


def picture_of(screen: str, columns: int, title: str) -> str:
    """A terminal's screen, with its colours as escape sequences, as SVG."""
    console = Console(width=columns, record=True, file=io.StringIO(), force_terminal=True)
    for line in screen.rstrip("\n").split("\n"):
        console.print(Text.from_ansi(line), no_wrap=True, overflow="crop", crop=True)
    name = title.replace(" ", "-")
    svg = console.export_svg(title=title, theme=SVG_EXPORT_THEME, code_format=_SVG, unique_id=name)
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


class _Tmux:
    """A tmux server without the user's settings."""

    def __init__(self, socket: Path) -> None:
        self._command = ("tmux", "-S", str(socket), "-f", "/dev/null")

    def call(self, *words: str) -> str:
        done = subprocess.run(  # noqa: S603 - our own words
            (*self._command, *words), check=True, capture_output=True, text=True
        )
        return done.stdout

    def start(self, name: str, columns: int, rows: int) -> None:
        setting = (f"MDSERVICE_SOCKET={_FOLDER}/mdservice.sock", f"PATH={os.environ['PATH']}")
        program = ("env", "-i", "TERM=xterm-256color", "LANG=C.UTF-8", f"HOME={_FOLDER}", *setting)
        program = (*program, sys.executable, "-m", "mdservice", name)
        size = ("-x", str(columns), "-y", str(rows))
        self.call("new-session", "-d", *size, "-s", name, *program)

    def screen(self, name: str) -> str:
        return self.call("capture-pane", "-p", "-e", "-t", name)

    def wait_for(self, name: str, shows: Callable[[str], bool]) -> None:
        until_s = time.monotonic() + _WAIT_S
        while not shows(self.call("capture-pane", "-p", "-t", name)):
            if time.monotonic() > until_s:
                raise SystemExit(f"mdservice {name} does not show it:\n{self.screen(name)}")
            time.sleep(_LOOK_S)

    def end(self, name: str) -> None:
        """As a person does, so that nothing is left behind."""
        with suppress(subprocess.CalledProcessError):
            self.call("send-keys", "-t", name, "C-c")
            until_s = time.monotonic() + _WAIT_S
            while time.monotonic() < until_s:
                self.call("has-session", "-t", name)
                time.sleep(_LOOK_S)


@contextmanager
def _tmux() -> Iterator[_Tmux]:
    if shutil.which("tmux") is None:
        raise SystemExit("tmux is needed to record the terminal")
    _FOLDER.mkdir(mode=0o700)
    tmux = _Tmux(_FOLDER / "tmux")
    try:
        yield tmux
    finally:
        for name in ("watch", "run"):
            tmux.end(name)
        shutil.rmtree(_FOLDER)


def _record() -> None:
    with _tmux() as tmux:
        tmux.start("run", 132, 24)
        tmux.wait_for("run", lambda screen: "running | " in screen)
        tmux.start("watch", 190, 20)
        # A daily bar, which comes each minute, brings the columns of the day.
        tmux.wait_for("watch", lambda screen: "volume" in screen)
        time.sleep(_SETTLE_S)
        for name, columns in (("run", 132), ("watch", 190)):
            picture = picture_of(tmux.screen(name), columns, f"mdservice {name}")
            (_PICTURES / f"{name}.svg").write_text(picture)
            print(f"{name}.svg has changed")


if __name__ == "__main__":
    _record()
