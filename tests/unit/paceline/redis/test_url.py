"""What a Redis URL names; a wrong one is refused before anything connects, and its password stays unseen."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster, SentinelConnectionPool, SSLConnection
from redis.asyncio.sentinel import SentinelManagedSSLConnection

from paceline.redis.url import open_url
from paceline.service.settings import SettingsError


def single(url: str) -> Redis:
    client = open_url(url, 2.0)
    assert isinstance(client, Redis)
    return client


def connecting(url: str) -> dict[str, Any]:
    """What its connections are made with."""
    options: dict[str, Any] = single(url).connection_pool.connection_kwargs
    return options


def test_a_server() -> None:
    options = connecting("redis://user:p%40ss@host:7000/3?socket_timeout=9")
    assert [options[name] for name in ("host", "port", "db", "username", "password", "socket_timeout")] == [
        *("host", 7000, 3, "user", "p@ss", 9.0)
    ]
    assert connecting("unix:///tmp/redis.sock?db=2")["path"] == "/tmp/redis.sock"
    assert connecting("redis://host")["socket_connect_timeout"] == 2.0


def test_a_server_over_tls() -> None:
    pool = single("rediss://:secret@host?ssl_ca_certs=ca.pem").connection_pool
    assert pool.connection_class is SSLConnection
    assert pool.connection_kwargs["ssl_ca_certs"] == "ca.pem"


def test_a_cluster() -> None:
    client = open_url("rediss+cluster://user:p%40ss@one:7000,two,[::1]:7002?ssl_ca_certs=ca.pem", 2.0)
    assert isinstance(client, RedisCluster)
    assert [(node.host, node.port) for node in client.startup_nodes] == [
        *(("one", 7000), ("two", 6379), ("::1", 7002))
    ]
    options = client.connection_kwargs
    assert [options[name] for name in ("username", "password", "ssl_ca_certs", "connection_class")] == [
        *("user", "p@ss", "ca.pem", SSLConnection)
    ]


def test_sentinels() -> None:
    url = "rediss+sentinel://user:p%40ss@one,two:7001/mine/4?sentinel_password=other&ssl_ca_certs=ca.pem"
    pool = single(url).connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.service_name, pool.connection_class) == ("mine", SentinelManagedSSLConnection)
    options = pool.connection_kwargs
    assert [options[name] for name in ("username", "password", "db", "ssl_ca_certs")] == [
        *("user", "p@ss", 4, "ca.pem")
    ]
    asked = [each.connection_pool for each in pool.sentinel_manager.sentinels]
    assert [(each.connection_kwargs["host"], each.connection_kwargs["port"]) for each in asked] == [
        *(("one", 26379), ("two", 7001))
    ]
    for each in asked:
        assert each.connection_class is SSLConnection
        assert (each.connection_kwargs["username"], each.connection_kwargs["password"]) == (None, "other")
        # All of them may hang and the call still has time to say so.
        assert each.connection_kwargs["socket_timeout"] * len(asked) < 2.0


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "scheme is unknown"),
        ("host:6379", "scheme is unknown"),
        ("http://host", "scheme is unknown"),
        ("redis+ring://host", r"there is no redis\+ring"),
        ("unix+cluster:///x", r"there is no unix\+cluster"),
        ("redis://host:secret", "a port"),
        ("redis://host:99999", "a port"),
        ("redis://:se/cret@host", "database is no number"),
        ("redis://host/secret", "database is no number"),
        ("redis://host?colour=red", "option is unknown .'colour'"),
        ("redis://host?socket_timeout=secret", "option cannot be read"),
        ("redis://host?ssl_ca_certs=ca.pem", "no rediss"),
        ("redis+cluster://", "host is missing"),
        ("redis+cluster://one,,two", "host is missing"),
        ("redis+cluster://one,two:secret", "a port"),
        ("redis+cluster://one/1", "one database"),
        ("redis+cluster://one?colour=red", "option is unknown .'colour'"),
        ("redis+sentinel://one,two", "lacks the service"),
        ("redis+sentinel://one/mine/secret", "cannot be read"),
        ("redis+sentinel://one/mine?colour=red", "option is unknown .'colour'"),
    ],
)
def test_what_is_wrong_is_said(url: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as caught:
        open_url(url, 2.0)
    assert "redis+sentinel://host:port,host:port/service" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)
