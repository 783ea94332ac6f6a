"""What a standby group needs."""

from __future__ import annotations

import pytest

from mdservice.errors import ConfigurationError
from mdservice.settings import Settings


@pytest.mark.parametrize("scheme", ["redis+sentinel", "rediss+sentinel", "redis+cluster"])
def test_a_group_needs_one_redis_server(scheme: str) -> None:
    settings = Settings(feed="simulator", group="desk", redis_url=f"{scheme}://a:1,b:2/prices")
    with pytest.raises(ConfigurationError, match=r"setting group.*one Redis server"):
        settings.require_runnable()


@pytest.mark.parametrize("url", ["redis://a:1", "rediss://a:1", "unix:///run/valkey.sock"])
def test_one_server_is_enough(url: str) -> None:
    Settings(feed="simulator", group="desk", redis_url=url).require_runnable()
