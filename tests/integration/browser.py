"""A headless Chromium for tests of the page, driven through its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.integration.conftest import patient

__all__ = ["Browser", "find_chromium", "open_browser"]


def find_chromium() -> str | None:
    """The program, or None."""
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


class Browser:
    """One page.

    Attributes:
        faults: What the console reported: errors, warnings, exceptions, failed requests.
        asked: The URLs that the page has asked for.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.faults: list[str] = []
        self.asked: list[str] = []
        self._socket = socket
        self._number = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send one command, and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=patient(30)))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message.get("method"), message.get("params"))

    def _note(self, method: str, told: Any) -> None:
        if method == "Runtime.exceptionThrown":
            self.faults.append(told["exceptionDetails"].get("exception", {}).get("description", ""))
        elif method == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning"}:
            self.faults.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in {"error", "warning"}:
            self.faults.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, limit_s: float = 30.0) -> None:
        """Wait until the expression is true."""
        end = time.monotonic() + patient(limit_s)
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never true: {expression}\n{self.text()}"
            time.sleep(0.05)

    def text(self) -> str:
        """All that the page shows."""
        return str(self.value("document.body?.innerText ?? ''"))

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Set the size of the window, and the colours that its user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Write what the window shows as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile, ended with all of its processes.

    Args:
        folder: An empty folder for its profile.
    """
    program = find_chromium()
    assert program is not None
    command = [
        program,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        with connect(_address(folder, process), max_size=None, proxy=None) as socket:
            yield Browser(socket)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(patient(20))


def _address(folder: Path, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + patient(60)
    note = folder / "DevToolsActivePort"
    while not note.exists() or len(note.read_text().splitlines()) < 2:
        assert process.poll() is None, "the browser has ended"
        assert time.monotonic() < end, "the browser does not start"
        time.sleep(0.05)
    port = note.read_text().splitlines()[0]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=patient(20)) as answer:
        pages = [one for one in json.load(answer) if one["type"] == "page"]
    return str(pages[0]["webSocketDebuggerUrl"])
