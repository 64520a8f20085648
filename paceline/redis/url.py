"""What a Redis URL names: a server, the primary that Sentinels know, or a cluster.

    redis://user:password@host:port/0                      unix:///path/to/socket
    redis+sentinel://user:password@host:port,host:port/service
    redis+cluster://user:password@host:port,host:port

`rediss` in the place of `redis` is TLS. Options follow as redis-py has them (`?ssl_ca_certs=ca.pem`), and
hold for Sentinels too; `sentinel_username` and `sentinel_password` are theirs alone.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from paceline.service.settings import SettingsError

_WRITE = (
    "write redis://host:port/0, redis+sentinel://host:port,host:port/service or "
    "redis+cluster://host:port,host:port; rediss for TLS; special characters of a password as %XX"
)
_Address = tuple[str, int]


def open_url(url: str, timeout_seconds: float) -> Redis | RedisCluster:
    """A client for `url`. It connects when it is first used, and never retries by itself.

    `timeout_seconds` bounds one connect, and one reply. Raises `SettingsError`, which shows no password.
    """
    scheme, separator, rest = url.partition("://")
    plain, _, kind = scheme.partition("+")
    if not separator or plain not in ("redis", "rediss", "unix"):
        raise _wrong("its scheme is unknown")
    if kind not in ("", "sentinel", "cluster") or (kind and plain == "unix"):
        raise _wrong(f"there is no {scheme}")
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    if plain != "rediss" and "ssl_" in rest.partition("?")[2]:
        raise _wrong("it has options of TLS and no rediss")
    try:
        if not kind:
            return _server(plain, url, options)
        # `urlsplit` of newer Pythons takes no list of hosts with an IPv6 address in it.
        netloc = re.split("[/?#]", rest, maxsplit=1)[0]
        user, at, hosts = netloc.rpartition("@")
        parts = urlsplit(rest.removeprefix(netloc))
        addresses = _addresses(hosts.split(","), 26379 if kind == "sentinel" else 6379)
        # Credentials and options are the same for all of them, the rest is in `addresses` and the path.
        options |= parse_url(f"{plain}://{user}{at}?{parts.query}")
        options["ssl"] = options.pop("connection_class", None) is SSLConnection
        path = parts.path.strip("/")
        return (
            _primary(addresses, path, options) if kind == "sentinel" else _cluster(addresses, path, options)
        )
    except SettingsError:
        raise
    except TypeError as error:
        # Python's own words for an unknown argument.
        raise _wrong(f"an option is unknown ({str(error).rpartition(' ')[2]})") from None
    except ValueError:
        # The error's text may hold a part of the password.
        raise _wrong("a host, a port or an option cannot be read") from None


def _server(plain: str, url: str, options: dict[str, Any]) -> Redis:
    database = urlsplit(url).path.strip("/")
    if plain != "unix" and database and not database.isdecimal():
        raise _wrong("its database is no number")
    pool = ConnectionPool(**{**options, **parse_url(url)})
    # Unknown options show when a connection is made.
    pool.make_connection()
    return Redis.from_pool(pool)


def _primary(sentinels: list[_Address], path: str, options: dict[str, Any]) -> Redis:
    service, _, database = path.partition("/")
    if not service:
        raise _wrong("it lacks the service that the Sentinels watch")
    own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    # Sentinels are asked in turn: one that hangs must leave time for the others.
    seconds = options["socket_timeout"] / (len(sentinels) + 1)
    own |= {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    known = Sentinel(sentinels, sentinel_kwargs={**options, **own}, **options)
    client: Redis = known.master_for(service, db=int(database or 0))
    client.connection_pool.make_connection()
    return client


def _cluster(nodes: list[_Address], path: str, options: dict[str, Any]) -> RedisCluster:
    if path not in ("", "0"):
        raise _wrong("a cluster has one database, 0")
    # A moved slot is noted at once; after failures `redis.client` asks for all slots again.
    return RedisCluster(
        startup_nodes=[ClusterNode(*address) for address in nodes], reinitialize_steps=0, **options
    )


def _addresses(hosts: list[str], port: int) -> list[_Address]:
    named = [urlsplit(f"//{host}") for host in hosts]
    if not all(each.hostname for each in named):
        raise _wrong("a host is missing")
    return [(each.hostname or "", each.port or port) for each in named]


def _wrong(why: str) -> SettingsError:
    return SettingsError(f"--redis-url is not a Redis URL: {why}; {_WRITE}")
