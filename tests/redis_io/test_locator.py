"""URLs that lead to a server by way of others: what is shown of them, and which are refused."""

from __future__ import annotations

import pytest

from mdservice.errors import ConfigurationError
from mdservice.observability.masking import mask_url, secrets_in_url
from mdservice.redis_io.connection import RedisAddress
from mdservice.redis_io.locator import SentinelLocator, _address, _replicas, locator_of

SHOWN = {
    "redis+sentinel://s/prices": "redis+sentinel://s:26379/prices/0",
    "redis+sentinel://a:1,b:2,[::1]:3/prices/4": "redis+sentinel://a:1,b:2,[::1]:3/prices/4",
    "redis+sentinel://me:hunter2@a:1,b/prices": "redis+sentinel://a:1,b:26379/prices/0",
    "redis+sentinel://:hunter2@a/my%20set/": "redis+sentinel://a:26379/my%20set/0",
    "redis+sentinel://:hunter%40%2F2@a/prices": "redis+sentinel://a:26379/prices/0",
    "rediss+sentinel://a/prices": "redis+sentinel://a:26379/prices/0?ssl=true",
    "redis+sentinel://a/prices?ssl=true": "redis+sentinel://a:26379/prices/0?ssl=true",
    "redis+sentinel://a/prices?db=3": "redis+sentinel://a:26379/prices/3",
    "redis+sentinel://a/prices?sentinel_username=me&sentinel_password=hunter2": (
        "redis+sentinel://a:26379/prices/0"
    ),
    "Redis+Sentinel://a/prices?read_from=replica": (
        "redis+sentinel://a:26379/prices/0?read_from=replica"
    ),
}


@pytest.mark.parametrize(("url", "shown"), SHOWN.items())
def test_the_address_is_the_url_without_its_secrets(url: str, shown: str) -> None:
    locator = locator_of(url, timeout_s=1.0)
    assert locator.shown == shown
    assert locator_of(shown, timeout_s=1.0).shown == shown
    assert isinstance(locator, SentinelLocator)
    assert locator.user == ("me" if "//me:" in url else "default")


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://",
        "redis+sentinel:///prices",
        "redis+sentinel://a:1",
        "redis+sentinel://a:1/",
        "redis+sentinel://a:1//2",
        "redis+sentinel://a:1/prices/first",
        "redis+sentinel://a:1/prices/0/1",
        "redis+sentinel://a:1,/prices",
        "redis+sentinel://a:port,b/prices",
        "redis+sentinel://a:0/prices",
        "redis+sentinel://me:hunter2/x@a/prices",
        "redis+sentinel://me:hunter2#x@a/prices",
        "redis+sentinel://me:hunter2@a/prices?read_from=hunter2",
        "redis+sentinel://me:hunter2@a/prices?ssl=hunter2",
        "redis+sentinel://me:hunter2@a/prices?colour=hunter2",
        "redis+sentinel://me:hunter2@a/prices?db=hunter2",
        "redis+sentry://me:hunter2@a/prices",
    ],
)
def test_a_bad_url_is_a_configuration_error_that_does_not_quote_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        locator_of(url, timeout_s=1.0)
    assert "hunter2" not in str(caught.value)


def test_any_other_url_is_the_server_itself() -> None:
    assert isinstance(locator_of("redis://db/1", timeout_s=1.0), RedisAddress)


@pytest.mark.parametrize("login", ["me:hunter2@", ":hunter2@", "me:hun%2Fter2@"])
@pytest.mark.parametrize("hosts", ["a", "a:1,b:2,c", "[::1]:1,[::2]:2", "10.0.0.1:1,[fe80::1]:2"])
@pytest.mark.parametrize("query", ["", "?sentinel_username=spy&sentinel_password=s3cr3t&ssl=true"])
def test_secrets_of_a_url_with_several_hosts_are_masked(login: str, hosts: str, query: str) -> None:
    for scheme in ("redis+sentinel", "rediss+sentinel", "redis+cluster"):
        url = f"{scheme}://{login}{hosts}/prices/0{query}"
        masked = mask_url(url)
        assert hosts in masked
        for secret in ("hunter2", "hun%2Fter2", "s3cr3t", "spy"):
            assert secret not in masked
        found = secrets_in_url(url)
        assert {"hunter2", "hun/ter2"}.intersection(found)
        assert ("s3cr3t" in found) == bool(query)
        assert not {"true", url}.intersection(found)


def test_no_secret_is_in_the_repr_of_what_was_parsed() -> None:
    url = "redis+sentinel://me:hunter2@a:1,b/prices?sentinel_password=hunter2"
    locator = locator_of(url, timeout_s=1.0)
    assert "hunter2" not in repr(locator)


HOSTILE = ["", "3:1", "a@b", "a/b", "a?db=1", "[::1]", "a b", "a#", "\u2100", "x" * 300]


@pytest.mark.parametrize(
    ("host", "port"), [*((host, 6379) for host in HOSTILE), ("h", 0), ("h", 65536)]
)
def test_a_sentinel_cannot_name_what_is_no_server(host: str, port: int) -> None:
    assert _address([host.encode(), b"%d" % port]) is None
    facts = [b"ip", host.encode(), b"port", b"%d" % port]
    assert _replicas([facts, [b"ip", b"::1", b"port", b"6380"]]) == (("::1", 6380),)
