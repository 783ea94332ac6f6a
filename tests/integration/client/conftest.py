"""A desk with a server of its own, which a test may kill, pause and restart."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.client.desk import Desk


@pytest.fixture
def desk(fresh_valkey: Any) -> Desk:
    return Desk(fresh_valkey)
