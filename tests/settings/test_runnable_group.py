"""What a standby group needs."""

from __future__ import annotations

import pytest

from mdservice.errors import ConfigurationError
from mdservice.settings import Settings


def test_a_group_has_no_lease_in_a_cluster() -> None:
    settings = Settings(feed="simulator", group="desk", redis_url="redis+cluster://a:1,b:2")
    with pytest.raises(ConfigurationError, match=r"setting group.*no cluster"):
        settings.require_runnable()


@pytest.mark.parametrize(
    "url",
    [
        "redis://a:1",
        "rediss://a:1",
        "unix:///run/valkey.sock",
        "redis+sentinel://a:1,b:2/prices",
        "rediss+sentinel://a:1,b:2/prices",
    ],
)
def test_a_group_needs_one_server_or_sentinels(url: str) -> None:
    Settings(feed="simulator", group="desk", redis_url=url).require_runnable()
