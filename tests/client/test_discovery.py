"""Where the prices are, as the service reports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mdservice.client import discovery
from mdservice.client.discovery import ServiceServer
from mdservice.client.http import Answer, NoAnswer


async def test_the_same_answer_keeps_the_certificates_that_were_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = {"url": "rediss://one:6379/0", "key_prefix": "a:"}

    def ask(*_: Any, **__: Any) -> Answer:
        return Answer(200, {"redis": dict(report)})

    monkeypatch.setattr(discovery, "ask", ask)
    server = ServiceServer(tmp_path / "s")
    first = await server.find()
    again = await server.find()
    assert again.address.tls_context() is first.address.tls_context()
    report["key_prefix"] = "b:"
    assert (await server.find()).names.prefix == "b:"
    report["url"] = "rediss://two:6379/0"
    assert (await server.find()).address.shown == "rediss://two:6379/0"


async def test_a_service_without_redis_is_named_with_its_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = Answer(200, {"redis": {"url": "sqlite:prices.db", "key_prefix": ""}})
    monkeypatch.setattr(discovery, "ask", lambda *_, **__: answer)
    with pytest.raises(NoAnswer, match=r"writes to sqlite:prices\.db"):
        await ServiceServer(tmp_path / "s").find()
