"""A publisher with a server of its own, which a test may kill, pause and restart."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.client.publisher import Publisher


@pytest.fixture
def publisher(fresh_valkey: Any) -> Publisher:
    return Publisher(fresh_valkey)
