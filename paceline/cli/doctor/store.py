"""Redis: whether sessions can be kept there, and whether they would survive what usually happens."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import RedisCluster, Sentinel, SentinelConnectionPool
from redis.exceptions import NoPermissionError, RedisClusterException, RedisError, ResponseError

from paceline.cli.doctor import clock
from paceline.cli.doctor.findings import Check, Report
from paceline.redis.client import RedisClient, RedisUnavailableError
from paceline.redis.url import open_url
from paceline.service.settings import SettingsError

_TIMEOUT_SECONDS = 2.0
_OLDEST = (6, 2)
_PINGS = 11
# A commit waits for one round trip.
_SLOW_SECONDS = 0.01
_FULL_SHARE = 0.9
_SLOTS = 16384
_LAGGING_SECONDS = 10
# What a refusal means, by its words: those of servers, and of the client, which leaves out the first.
_REFUSALS = (
    (
        r"NOAUTH|Authentication required|already authenticated",
        "put the user and password into the URL: redis://USER:PASSWORD@HOST",
    ),
    (r"WRONGPASS|invalid username-password", "correct the user or password in the URL"),
    (r"NOPERM|no permissions", "let the user run EVAL and EVALSHA, and SET on keys paceline:*"),
    (r"READONLY|read.only", "name the primary, or its Sentinels (redis+sentinel://)"),
    (r"\bOOM\b|used memory", "give it more memory (maxmemory): it refuses to write"),
    (r"MISCONF|unable to persist", "make room on its disk: it refuses to write while it cannot save"),
    (r"certificate|SSL|TLS", "name its CA in the URL: rediss://HOST?ssl_ca_certs=FILE"),
)
_FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
_ELSE = "start it, or correct --redis-url and let this machine through to it"


@dataclass(frozen=True, slots=True)
class _Server:
    """One server that sessions are written to; `ask` sends it a command."""

    name: str
    ask: Callable[..., Awaitable[Any]]


async def check(report: Report, url: str) -> None:
    """All that there is to say of the Redis at `url`."""
    subject = _without_secrets(url)
    try:
        client = RedisClient(url, timeout_seconds=_TIMEOUT_SECONDS)
    except SettingsError as error:
        report.error(Check.REDIS, subject, str(error), "correct the URL")
        return
    try:
        await client.ping()
    except RedisUnavailableError as error:
        report.error(Check.REDIS, subject, f"a script cannot write there: {error}", _remedy(str(error)))
        return
    finally:
        await client.close()
    raw = open_url(url, _TIMEOUT_SECONDS)
    try:
        if not isinstance(raw, RedisCluster) and isinstance(raw.connection_pool, SentinelConnectionPool):
            pool = raw.connection_pool
            await _check_sentinels(report, pool.sentinel_manager, pool.service_name)
        for server in await _servers(raw, subject):
            try:
                await _check_server(report, server)
            except _FAILURES as error:
                report.error(Check.REDIS, server.name, f"fails: {error}", _remedy(str(error)))
    except _FAILURES as error:
        report.error(Check.REDIS, subject, f"fails: {error}", _remedy(str(error)))
    finally:
        await raw.aclose()


async def _servers(raw: Any, subject: str) -> list[_Server]:
    if not isinstance(raw, RedisCluster):
        return [_Server(subject, raw.execute_command)]
    await raw.initialize()
    return [_Server(node.name, node.execute_command) for node in raw.get_primaries()]


async def _check_sentinels(report: Report, known: Sentinel, service: str) -> None:
    for sentinel in known.sentinels:
        where = sentinel.connection_pool.connection_kwargs
        name = f"sentinel {where.get('host')}:{where.get('port')}"
        try:
            await sentinel.execute_command("SENTINEL", "CKQUORUM", service)
        except ResponseError as error:
            report.error(
                Check.REDIS,
                name,
                f"no failover is possible: {error}",
                "start more Sentinels, or lower the quorum",
            )
        except (RedisError, OSError) as error:
            report.warning(
                Check.REDIS, name, f"does not answer: {error}", "start it, or take it out of the URL"
            )
        else:
            report.ok(Check.REDIS, name, f"knows {service!r}, and enough others to fail over")
        finally:
            await sentinel.aclose()


async def _check_server(report: Report, server: _Server) -> None:
    took = []
    for _ in range(_PINGS):
        begin = time.perf_counter()
        await server.ask("PING")
        took.append(time.perf_counter() - begin)
    median = statistics.median(took)
    said = f"answers in {1000 * median:.1f} ms"
    if median > _SLOW_SECONDS:
        report.warning(
            Check.REDIS,
            server.name,
            f"{said}; each step's tokens wait for that long",
            "put it nearer to the verifiers, or look what keeps it busy (SLOWLOG)",
        )
    else:
        report.ok(Check.REDIS, server.name, said)
    asked = time.time()
    with suppress(NoPermissionError):
        seconds, micros = await server.ask("TIME")
        clock.check(report, f"redis {server.name}", int(seconds) + int(micros) / 1e6, asked, time.time())
    try:
        info: dict[str, Any] = await server.ask("INFO")
    except NoPermissionError:
        report.note(
            Check.REDIS,
            server.name,
            "version, memory, persistence and replication were not checked: the user may not run INFO",
            "let it (`ACL SETUSER ... +info`) if you want them checked",
        )
        return
    _check_version(report, server.name, info)
    _check_memory(report, server.name, info)
    _check_persistence(report, server.name, info)
    _check_replicas(report, server.name, info)
    if info.get("cluster_enabled"):
        await _check_cluster(report, server)


def _check_version(report: Report, name: str, info: dict[str, Any]) -> None:
    version = str(info["redis_version"])
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    said = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
    if numbers < _OLDEST:
        report.error(Check.REDIS, name, f"{said} is too old", "use Redis 6.2 or later, or Valkey")
    else:
        report.ok(Check.REDIS, name, said)


def _check_memory(report: Report, name: str, info: dict[str, Any]) -> None:
    most, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        report.warning(
            Check.REDIS,
            name,
            f"maxmemory-policy is {policy}: when memory is short it drops sessions that run",
            "set maxmemory-policy noeviction",
        )
    used = int(info.get("used_memory", 0))
    if most and used > _FULL_SHARE * most:
        report.warning(
            Check.REDIS,
            name,
            f"{used / most:.0%} of its memory is used; when it is full nothing can be written",
            "raise maxmemory, or lower --session-ttl-seconds",
        )


def _check_persistence(report: Report, name: str, info: dict[str, Any]) -> None:
    failed = [
        what
        for what in ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
        if info.get(what, "ok") != "ok"
    ]
    if failed:
        report.error(
            Check.REDIS,
            name,
            f"cannot write to its disk ({', '.join(failed)})",
            "make room on it; its log says why",
        )
    if info.get("aof_enabled"):
        report.ok(Check.REDIS, name, "keeps its data on disk (appendonly)")
        return
    replicas = int(info.get("connected_slaves", 0))
    what = "appendonly is off: a restart loses what was written since the last snapshot, sessions included"
    do = "set appendonly yes"
    if replicas:
        report.note(Check.REDIS, name, f"{what}; {replicas} replicas have it", do)
    else:
        report.warning(Check.REDIS, name, what, do)


def _check_replicas(report: Report, name: str, info: dict[str, Any]) -> None:
    if info.get("role") != "master":
        report.error(
            Check.REDIS, name, "is a replica", "name the primary, or its Sentinels (redis+sentinel://)"
        )
        return
    replicas = [value for key, value in info.items() if re.fullmatch(r"slave\d+", key)]
    for replica in replicas:
        where = f"{replica.get('ip')}:{replica.get('port')}"
        if replica.get("state") != "online" or int(replica.get("lag", 0)) > _LAGGING_SECONDS:
            report.warning(
                Check.REDIS,
                name,
                f"its replica {where} is {replica.get('state')}, {replica.get('lag', '?')} s behind: "
                "a failover loses what it lacks",
                "look why it does not keep up",
            )
    if replicas:
        report.ok(Check.REDIS, name, f"{len(replicas)} replicas")


async def _check_cluster(report: Report, server: _Server) -> None:
    with suppress(NoPermissionError):
        state = await server.ask("CLUSTER INFO")
        if state.get("cluster_state") != "ok" or int(state.get("cluster_slots_ok", 0)) < _SLOTS:
            report.error(
                Check.REDIS,
                server.name,
                f"only {state.get('cluster_slots_ok')} of the cluster's {_SLOTS} slots can be used",
                "bring its missing primaries back, or promote their replicas",
            )


def _remedy(message: str) -> str:
    return next((do for words, do in _REFUSALS if re.search(words, message)), _ELSE)


def _without_secrets(url: str) -> str:
    """Where a URL leads, without user, password and options."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "redis"
    return parts.netloc.rpartition("@")[2] or parts.path or "redis"
