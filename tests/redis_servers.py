"""Redis servers of a test's own: one alone, a primary with a replica and a Sentinel, a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import RedisError

from paceline.addresses import parse_address
from paceline.local import redis_server
from paceline.local.plan import HOST, choose_addresses
from tests.pods import Pod

_SLOTS = 16384
SERVICE = "sessions"


class RedisServer:
    """A server on a port, which a test may kill and start again. Use as a context manager."""

    def __init__(
        self, name: str, logs: Path, flags: Sequence[str] = (), *, port: int = 0, group: int | None = None
    ) -> None:
        """`group`: the process's group id, where it is not ours."""
        self.name = name
        self._group = group
        self.port = port or free_ports(1)[0]
        self.data = redis_server.data_folder()
        self._logs = logs
        self._flags = flags
        # Its commands raise while the server is away.
        self.asked = redis.Redis(host=HOST, port=self.port, socket_timeout=5)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.asked.close()
        self.pod.kill()
        shutil.rmtree(self.data, ignore_errors=True)

    def start(self) -> None:
        """Start it with what it has on disk, and wait until it answers."""
        command = [str(redis_server.find_server()), "--port", str(self.port), "--bind", HOST, "--save", ""]
        command += ["--repl-diskless-sync-delay", "0", "--dir", str(self.data), *self._flags]
        self.pod = Pod(self.name, command, self._logs, group=self._group)
        self.until(self.asked.ping)

    def info(self, section: str) -> dict[str, Any]:
        """A section of INFO; empty while the server does not answer."""
        with suppress(RedisError):
            told: dict[str, Any] = self.asked.info(section)
            return told
        return {}

    def replicated(self) -> None:
        """Return once the replica has everything that was written until now.

        WAIT would not tell: it asks for what its own connection has written.
        """
        written = self.info("replication")["master_repl_offset"]
        self.until(lambda: self.info("replication")["slave0"]["offset"] >= written)

    def until(self, ready: Any) -> None:
        """Return once `ready()` is true; fail with the log where that takes too long."""

        def answered() -> bool:
            try:
                return bool(ready())
            except RedisError:
                return False

        self.pod.until(answered)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, no two the same."""
    chosen = choose_addresses(http_port=0, grpc_port=0, verifiers=count, drafters=0)
    return [parse_address(address)[1] for address in chosen.verifiers]


class Cluster:
    """Primaries, and as many replicas, in the order of their slots."""

    def __init__(self, primaries: list[RedisServer], replicas: list[RedisServer]) -> None:
        self.primaries = primaries
        self.replicas = replicas

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{each.port}" for each in self.primaries)

    @property
    def servers(self) -> list[RedisServer]:
        return [*self.primaries, *self.replicas]

    def owner(self, key: str) -> RedisServer:
        """The primary that has a key's slot, as the cluster was made."""
        slot = int(self.primaries[0].asked.cluster("keyslot", key))
        return self.primaries[slot * len(self.primaries) // _SLOTS]


@contextmanager
def redis_cluster(logs: Path, *, replicas: bool = False, node_timeout_ms: int = 5000) -> Iterator[Cluster]:
    """A cluster of three primaries, each with a replica where asked for.

    Where a primary is gone the others serve on.
    """
    count = 6 if replicas else 3
    ports = free_ports(2 * count)
    flags = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)]
    flags += ["--cluster-replica-validity-factor", "0", "--cluster-require-full-coverage", "no"]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                RedisServer(f"node-{place}", logs, [*flags, "--cluster-port", str(bus)], port=port)
            )
            for place, (port, bus) in enumerate(zip(ports[:count], ports[count:], strict=True))
        ]
        made = Cluster(servers[:3], servers[3:])
        for place, server in enumerate(servers):
            server.asked.cluster("set-config-epoch", place + 1)
            servers[0].asked.cluster("meet", HOST, server.port, ports[count + place])
        for place, server in enumerate(made.primaries):
            first, last = (-(-edge * _SLOTS // 3) for edge in (place, place + 1))
            server.asked.cluster("addslotsrange", first, last - 1)
        for server in servers:
            server.until(lambda server=server: _knows(server, count))
        for primary, replica in zip(made.primaries, made.replicas, strict=False):
            replica.until(lambda replica=replica, primary=primary: _follow(replica, primary))
        for server in servers:
            server.until(lambda server=server: _all_is_well(server, len(made.replicas)))
        yield made


def _knows(server: RedisServer, count: int) -> bool:
    nodes: dict[str, dict[str, Any]] = server.asked.cluster("nodes")
    return len(nodes) == count and not any("handshake" in node["flags"] for node in nodes.values())


def _follow(replica: RedisServer, primary: RedisServer) -> bool:
    return bool(replica.asked.cluster("replicate", primary.asked.cluster("myid")))


def _all_is_well(server: RedisServer, replicas: int) -> bool:
    nodes: dict[str, dict[str, Any]] = server.asked.cluster("nodes")
    linked = server.info("replication").get("master_link_status", "up") == "up"
    seen = sum("slave" in node["flags"] for node in nodes.values())
    return linked and seen == replicas and server.asked.cluster("info")["cluster_state"] == "ok"


class Watched:
    """A primary and a replica, of which a Sentinel makes a primary when the first one is gone."""

    def __init__(self, servers: list[RedisServer], sentinel: RedisServer) -> None:
        self.primary, self.replica = servers
        self.sentinel = sentinel

    @property
    def url(self) -> str:
        return f"redis+sentinel://{HOST}:{self.sentinel.port}/{SERVICE}"

    def forget_to_replicate(self) -> None:
        """Let nothing more come to the replica."""
        self.replica.asked.replicaof("NO", "ONE")

    def fail_over(self) -> None:
        """Kill the primary and return when the replica has its place."""
        self.primary.pod.kill()
        self.sentinel.until(lambda: self._known_port() == self.replica.port)

    def _known_port(self) -> int:
        state = self.sentinel.asked.sentinel_master(SERVICE)
        assert isinstance(state, dict)
        return int(state["port"])


@contextmanager
def watched_redis(logs: Path) -> Iterator[Watched]:
    """See `Watched`; a primary is taken for dead after half a second."""
    primary_port, replica_port, sentinel_port = free_ports(3)
    with ExitStack() as stack:
        primary = stack.enter_context(RedisServer("primary", logs, port=primary_port))
        replica = stack.enter_context(
            RedisServer("replica", logs, ["--replicaof", HOST, str(primary.port)], port=replica_port)
        )
        replica.until(lambda: replica.info("replication")["master_link_status"] == "up")
        sentinel = stack.enter_context(_Sentinel("sentinel", logs, primary.port, port=sentinel_port))
        sentinel.until(lambda: sentinel.asked.sentinel_slaves(SERVICE))
        yield Watched([primary, replica], sentinel)


class _Sentinel(RedisServer):
    def __init__(self, name: str, logs: Path, watched: int, *, port: int) -> None:
        super().__init__(name, logs, port=port)
        self._settings = self.data / "sentinel.conf"
        self._settings.write_text(
            f"sentinel monitor {SERVICE} {HOST} {watched} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )

    def start(self) -> None:
        command = [str(redis_server.find_server()), str(self._settings), "--sentinel"]
        command += ["--port", str(self.port), "--bind", HOST, "--dir", str(self.data)]
        self.pod = Pod(self.name, command, self._logs)
        self.until(self.asked.ping)
