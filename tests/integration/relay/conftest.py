"""What the tests of the relay share: a certificate, and how a service is started with one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Program, eventually

PREFIX = "/api/v1/market-data"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed one for this machine, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("relay-tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key)]
    command += ["-out", str(cert), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    return cert, key


class RelayService:
    """A service with a relay, which can be started again at the same address.

    Args:
        stage: Ends it with the tests.
        certificate: The certificate and key of its TLS; None for none.
        env: Its settings, the account and Redis included.
    """

    def __init__(
        self, stage: Any, certificate: tuple[Path, Path] | None = None, **env: str
    ) -> None:
        self._stage = stage
        self.folder = stage.folder()
        self.address = f"127.0.0.1:{stage.free_port()}"
        self.url = f"{'ws' if certificate is None else 'wss'}://{self.address}"
        self.env = {"MDSERVICE_RELAY": self.address, **env}
        if certificate is not None:
            cert, key = certificate
            self.env |= {"MDSERVICE_RELAY_CERT": str(cert), "MDSERVICE_RELAY_KEY_FILE": str(key)}
        self.program: Program

    def start(self) -> RelayService:
        self.program = self._stage.program("run", folder=self.folder, **self.env)
        self.program.wait_ready()
        return self

    def restart(self) -> None:
        assert self.program.end() == 0, self.program.said
        self.start()

    @property
    def status(self) -> dict[str, Any]:
        """``relay`` of ``/status``."""
        found: dict[str, Any] = self.program.status()["relay"]
        return found

    def pairs(self) -> int:
        """How many (channel, symbol) pairs its clients have subscribed to."""
        return sum(int(client["symbols"]) for client in self.status["clients"])

    def until_pairs(self, condition: Any) -> None:
        eventually(lambda: condition(self.pairs()), what=lambda: self.status)

    def sources(self, symbol: str) -> list[str]:
        """Who wants the symbol."""
        found: list[str] = self.program.get(f"{PREFIX}/subscriptions")["sources"].get(symbol, [])
        return found

    def metrics(self) -> dict[str, float]:
        """The relay's metrics, by name."""
        lines = self.program.http.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("mdservice_relay"))
        return {name: float(value) for name, value in pairs}
