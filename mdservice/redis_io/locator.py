"""Finds the server that a Redis URL leads to: the one it names, or the one that sentinels know.

Sentinels watch a primary and its replicas, and promote a replica when the primary fails. Whoever
connects asks a sentinel for the present primary first, and asks that server for its role.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import closing
from typing import Final, cast
from urllib.parse import quote, urlencode, urlsplit

import anyio
import attrs

from mdservice.errors import ConfigurationError, StoreError, StoreRefused, StoreUnavailable
from mdservice.redis_io.cluster import ClusterLocator
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import Opener, RedisAddress, RedisConnection, RedisLocator
from mdservice.redis_io.replies import Role, is_error, refusal_code
from mdservice.settings.parsers import SeveralServers, split_several

__all__ = ["Found", "SentinelLocator", "locator_of"]

_CLIENT_NAME: Final = "mdservice-locator"
_SENTINEL_LIMIT_S: Final = 1.0
"""The limit for connecting to a sentinel and its answers: a dead one must not hold up others."""
_SERVER_LIMIT_S: Final = 2.0
"""The limit for connecting to a server that a sentinel has named, for the same reason."""
_MOST_KNOWN: Final = 32
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]{1,255}", re.ASCII)
_OUT_OF_ORDER: Final = frozenset({"s_down", "o_down", "disconnected", "master"})
"""Flags of a replica that is not used."""


def locator_of(url: str, *, timeout_s: float) -> RedisLocator:
    """What finds the server of a URL.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it;
            ``redis+sentinel://`` as :class:`SentinelLocator` has it; ``redis+cluster://`` as
            :class:`~mdservice.redis_io.cluster.ClusterLocator` has it.
        timeout_s: How long connecting, and each wait for the server, may take.

    Raises:
        ConfigurationError: The URL cannot be used. It is not quoted: it may hold a password.
    """
    try:
        several = split_several(url)
        if several is not None and several.scheme.endswith("cluster"):
            return ClusterLocator(several, timeout_s=timeout_s)
        if several is not None:
            return SentinelLocator(several, timeout_s=timeout_s)
    except ValueError as exc:
        raise ConfigurationError(f"The Redis URL {exc}") from None
    return RedisAddress(url, timeout_s=timeout_s)


@attrs.frozen
class Found:
    """What one sentinel says.

    Attributes:
        sentinel: The sentinel, without user and password.
        primary: Host and port; None if it does not know the service.
        replicas: Host and port of each replica that is in order.
        problem: Why it does not answer, or None.
        refused: Whether it answers, but refuses.
        services: Those that it knows, where it does not know the wanted one.
    """

    sentinel: str
    primary: tuple[str, int] | None = None
    replicas: tuple[tuple[str, int], ...] = ()
    problem: str | None = None
    refused: bool = False
    services: tuple[str, ...] = ()


class SentinelLocator:
    """Asks sentinels for the present primary, or for a replica to read from.

    ``redis+sentinel://[user:pass@]host:port[,host:port…]/service[/db]``. User and password are
    for the data servers. Arguments of the query:

    * ``sentinel_username``, ``sentinel_password``: the login at the sentinels; none by default.
    * ``read_from=replica``: connections that only read prefer a replica.
    * ``ssl=true``, or the scheme ``rediss+sentinel``: TLS to sentinels and servers.
    * Any other is redis-py's and applies to both, such as ``ssl_ca_certs``; but ``db`` to the
      data servers only.

    Args:
        url: The parts of the URL.
        timeout_s: How long each wait for the server may take.

    Raises:
        ValueError, ConfigurationError: The URL cannot be used; without any part of it that may
            be secret.
    """

    may_move = True
    """A failover makes another server the primary."""

    def __init__(self, url: SeveralServers, *, timeout_s: float) -> None:
        query = dict(url.query)
        sentinel_login = query.pop("sentinel_username", ""), query.pop("sentinel_password", "")
        reads_from = query.pop("read_from", "primary")
        if reads_from not in ("primary", "replica"):
            raise ValueError("has a read_from that is neither primary nor replica")
        self._scheme = "rediss" if url.tls else "redis"
        self._login = "" if url.login is None else f"{url.login}@"
        database = query.pop("db", "") or (url.path[1] if url.path[1:] else "0")
        if not database.isdecimal():
            raise ValueError("has a db that is no number")
        self._query = f"?{urlencode(query)}" if query else ""
        self._database = database
        self.service = url.path[0]
        """The name under which the sentinels know the primary."""
        self.prefers_replica = reads_from == "replica"
        """Whether connections that only read prefer a replica."""
        self.timeout_s = timeout_s
        """How long each wait for the server may take."""
        self.clustered = self.sharded = False
        """Whether it leads to a cluster, where each key has its node; and so do events."""
        user, password = (quote(part, safe="") for part in sentinel_login)
        login = f"{user}:{password}@" if user or password else ""
        limit_s = min(timeout_s, _SENTINEL_LIMIT_S)
        self._sentinels = [
            RedisAddress(
                f"{self._scheme}://{login}{_joined(*server)}/0{self._query}", timeout_s=limit_s
            )
            for server in url.servers
        ]
        """The sentinels; the one that answered last is the first."""
        self._known: dict[tuple[str, int, Role], RedisAddress] = {}
        """Servers that were found before: each keeps its TLS certificates."""
        example = self._server(*url.servers[0], "primary")
        self.database = example.database
        """The number of the database."""
        self.user = example.user
        """Who logs in to the data servers."""
        hosts = ",".join(_joined(*server) for server in url.servers)
        shown = {"ssl": "true"} if url.tls else {}
        if self.prefers_replica:
            shown["read_from"] = "replica"
        self.shown = f"redis+sentinel://{hosts}/{quote(self.service, safe='')}/{self.database}" + (
            f"?{urlencode(shown)}" if shown else ""
        )
        """The URL without user and password; it can be used where no login is needed."""
        self._turn = os.getpid()
        """Which replica is next; processes begin with different ones."""

    async def reach(self, connect: Opener, *, reads: bool) -> RedisConnection:
        """See :class:`~mdservice.redis_io.connection.RedisLocator`.

        The sentinels are asked one after the other until a server that one names has the role.
        """
        tried: dict[tuple[str, int, Role], str] = {}
        answers: list[Found] = []
        for sentinel in tuple(self._sentinels):
            # A sentinel that does not answer is asked last next time, also after a cancellation.
            self._sentinels.remove(sentinel)
            self._sentinels.append(sentinel)
            replicas = reads and self.prefers_replica
            found = await self._ask(sentinel, replicas=replicas)
            answers.append(found)
            for server in self._candidates(found):
                if server in tried:
                    continue
                try:
                    with anyio.fail_after(min(self.timeout_s, _SERVER_LIMIT_S)):
                        connection = await connect(self._server(*server))
                except TimeoutError:
                    tried[server] = f"{_joined(*server[:2])} does not answer"
                except StoreUnavailable as exc:
                    tried[server] = str(exc)
                else:
                    self._sentinels.remove(sentinel)
                    self._sentinels.insert(0, sentinel)
                    return connection
        raise self._not_found(answers, tried.values())

    async def is_right(self, server: RedisLocator) -> bool:
        """See :class:`~mdservice.redis_io.connection.RedisLocator`.

        A primary is left when a sentinel names another one, and that one says that it is one.
        """
        if not isinstance(server, RedisAddress) or server.must_be != "primary":
            return True  # a replica says itself whether it still follows
        sentinel = self._sentinels[0]
        self._sentinels.remove(sentinel)
        self._sentinels.append(sentinel)
        found = await self._ask(sentinel, replicas=False)
        if found.primary is None:
            return True
        self._sentinels.remove(sentinel)
        self._sentinels.insert(0, sentinel)
        other = self._server(*found.primary, "primary")
        if other is server:
            return True
        try:
            connection = await RedisConnection.open(other, _CLIENT_NAME, limit_s=_SERVER_LIMIT_S)
        except StoreError:
            return True
        connection.close()
        return False

    async def ask_all(self) -> list[Found]:
        """What each sentinel says, for a person to read. Raises nothing for a dead sentinel."""
        return [await self._ask(sentinel, replicas=True) for sentinel in self._sentinels]

    async def _ask(self, sentinel: RedisAddress, *, replicas: bool) -> Found:
        service = self.service.encode()
        commands = [pack(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service)]
        if replicas:
            commands.append(pack(b"SENTINEL", b"REPLICAS", service))
        try:
            connection = await RedisConnection.open(
                sentinel, _CLIENT_NAME, limit_s=sentinel.timeout_s
            )
            with closing(connection), anyio.fail_after(sentinel.timeout_s):
                answer, *more = await connection.call(*commands)
                if answer is None:
                    (masters,) = await connection.call(pack(b"SENTINEL", b"MASTERS"))
                    return Found(sentinel.shown, services=_names(masters))
        except StoreError as exc:
            refused = isinstance(exc, StoreRefused)
            return Found(sentinel.shown, problem=str(exc), refused=refused)
        except TimeoutError:
            return Found(sentinel.shown, problem=f"{sentinel.shown} does not answer")
        if is_error(answer):
            return Found(sentinel.shown, problem=_refusal(sentinel.shown, answer), refused=True)
        primary = _address(answer)
        if primary is None:
            return Found(sentinel.shown, problem=f"{sentinel.shown} is no sentinel", refused=True)
        return Found(sentinel.shown, primary, _replicas(more[0]) if more else ())

    def _candidates(self, found: Found) -> list[tuple[str, int, Role]]:
        """The servers that will do, the preferred one first."""
        self._turn += 1
        first = self._turn % max(1, len(found.replicas))
        turned = (*found.replicas[first:], *found.replicas[:first])
        candidates: list[tuple[str, int, Role]] = [(*one, "replica") for one in turned]
        if found.primary is not None:
            candidates.append((*found.primary, "primary"))
        return candidates

    def _server(self, host: str, port: int, role: Role) -> RedisAddress:
        key = host, port, role
        if key not in self._known:
            while len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            url = (
                f"{self._scheme}://{self._login}{_joined(host, port)}/{self._database}{self._query}"
            )
            self._known[key] = RedisAddress(url, timeout_s=self.timeout_s, must_be=role)
        return self._known[key]

    def _not_found(self, answers: list[Found], tried: Collection[str]) -> StoreError:
        if tried:
            return StoreUnavailable(
                f"The sentinels at {self.shown} name no server that can be used: {'; '.join(tried)}"
            )
        problems = [found.problem for found in answers if found.problem is not None]
        if len(problems) < len(answers):
            known = sorted({name for found in answers for name in found.services})
            text = (
                f"No sentinel at {self.shown} knows a service {self.service!r}; they know "
                f"{', '.join(known) or 'none'}. Correct the URL (MDSERVICE_REDIS_URL)"
            )
            if problems:
                return StoreUnavailable(f"{text}; {'; '.join(problems)}")
            return StoreRefused(text, reconnect=True)
        text = f"No sentinel at {self.shown} can be asked: {'; '.join(problems)}"
        if all(found.refused for found in answers):
            return StoreRefused(text, reconnect=True)
        return StoreUnavailable(text)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _refusal(shown: str, reply: object) -> str:
    text = str(reply).rstrip(".")
    if refusal_code(text) in ("NOAUTH", "WRONGPASS", "NOPERM"):
        return (
            f"the sentinel at {shown} refused: {text}; set sentinel_username and "
            "sentinel_password in the query of the Redis URL (MDSERVICE_REDIS_URL)"
        )
    return f"{shown} refused: {text}; is it a sentinel?"


def _is_server(host: str, port: int) -> bool:
    """Whether they can be put into a URL, and mean the same there."""
    try:
        parts = urlsplit(f"redis://{_joined(host, port)}")
        same = (parts.hostname, parts.port) == (host.lower(), port)
    except ValueError:
        return False
    return same and port > 0 and _HOST.fullmatch(host) is not None


def _address(reply: object) -> tuple[str, int] | None:
    try:
        host, port = cast("list[bytes]", reply)  # anything else is an error
        server = host.decode(), int(port)
        return server if _is_server(*server) else None
    except (AttributeError, TypeError, ValueError):
        return None


def _facts(reply: object) -> list[dict[str, str]]:
    """A list of servers, as sentinels describe them."""
    if not isinstance(reply, list):
        return []
    texts = (
        [word.decode(errors="replace") for word in one if isinstance(word, bytes)]
        for one in reply
        if isinstance(one, list)
    )
    return [dict(zip(words[::2], words[1::2], strict=False)) for words in texts]


def _names(masters: object) -> tuple[str, ...]:
    return tuple(facts["name"] for facts in _facts(masters) if "name" in facts)


def _replicas(reply: object) -> tuple[tuple[str, int], ...]:
    return tuple(
        (facts["ip"], int(facts["port"]))
        for facts in _facts(reply)
        if "ip" in facts
        and facts.get("port", "").isdecimal()
        and _is_server(facts["ip"], int(facts["port"]))
        and facts.get("master-link-status", "ok") == "ok"
        and _OUT_OF_ORDER.isdisjoint(facts.get("flags", "").split(","))
    )
