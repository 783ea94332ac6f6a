"""The application, called without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from mdservice.http_api.server import create_app
from mdservice.testing.fake_service import FakeService


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://mdservice") as client:
        yield client
