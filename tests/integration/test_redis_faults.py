"""The store over Redis servers that restart, hang, fill up, move their slots, fail over and forget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from paceline.local.plan import HOST
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey
from paceline.store import Append, BaseMismatchError, RedisStore, SessionRecord, StoreUnavailableError
from tests.redis_servers import Cluster, RedisServer, redis_cluster, watched_redis
from tests.waiting import wait_until
from verifier_svc.commit import Committer
from verifier_svc.events import Event, StepOutcome, Tokens

PROMPT = (1, 2, 3)


def record(name: str, epoch: int = 1, committed: tuple[int, ...] = ()) -> SessionRecord:
    return SessionRecord(SessionKey(name, epoch), "m", PROMPT, SamplingParams(max_tokens=999), committed)


@asynccontextmanager
async def opened(url: str, *, timeout_seconds: float = 30) -> AsyncIterator[RedisStore]:
    """A store at `url`; patient, since the machine may be busy."""
    store = RedisStore(url, ttl_seconds=60, timeout_seconds=timeout_seconds)
    yield store
    await store.close()


async def committed(store: RedisStore, name: str) -> tuple[int, ...]:
    found = await store.get(name)
    assert found is not None
    return found.committed_ids


async def commit(store: RedisStore, name: str, *ids: int) -> None:
    (error,) = await store.append([Append(SessionKey(name, 1), len(PROMPT), ids)])
    assert error is None, error


async def until_taken(store: RedisStore, name: str, *ids: int) -> None:
    """Try as an owner does until the store has `ids`."""
    end = time.monotonic() + 30
    while True:
        (error,) = await store.append([Append(SessionKey(name, 1), len(PROMPT), ids)])
        if error is None:
            return
        assert isinstance(error, StoreUnavailableError), error
        assert time.monotonic() < end, error
        await asyncio.sleep(0.05)


class Relay:
    """Stands before servers, as a balancer does. Use as an asynchronous context manager."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        # It closes so many connections in the place of passing a reply on.
        self.swallow = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._relay, HOST, 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, self.upstream)
        sending = asyncio.create_task(self._pass(reader, far_writer))
        replying = asyncio.create_task(self._pass(far_reader, writer, replies=True))
        self._tasks |= {sending, replying}
        with suppress(asyncio.CancelledError):
            await asyncio.wait({sending, replying}, return_when=asyncio.FIRST_COMPLETED)
        for each in (far_writer, writer):
            each.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool = False
    ) -> None:
        while data := await reader.read(1 << 16):
            if replies and self.swallow:
                self.swallow -= 1
                return
            writer.write(data)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer("redis", tmp_path, getattr(request, "param", ())) as made:
        yield made


async def test_a_lost_reply_is_no_error(server: RedisServer) -> None:
    async with Relay(server.port) as relay, opened(relay.url) as store:
        # Each script is known to the server before: else the reply that is lost says that it is not.
        await store.create(record("another"))
        await commit(store, "another", 5)
        await store.claim(SessionKey("another", 2))
        await store.restore(record("another", 2, (5,)))
        relay.swallow = 1
        await store.create(record("one"))
        relay.swallow = 1
        await commit(store, "one", 5)
        relay.swallow = 1
        assert (await store.claim(SessionKey("one", 2))).committed_ids == (5,)
        relay.swallow = 1
        await store.restore(record("one", 2, (5, 6)))
        assert relay.swallow == 0
        assert await committed(store, "one") == (5, 6)


@pytest.mark.parametrize(
    ("server", "kept"),
    [(("--appendonly", "yes"), True), (("--appendonly", "no"), False)],
    indirect=["server"],
    ids=["AOF", "no AOF"],
)
async def test_a_restart_keeps_what_is_on_disk_and_costs_no_call(server: RedisServer, kept: bool) -> None:
    async with opened(server.url) as store:
        await asyncio.gather(*(store.create(record(f"{place}")) for place in range(8)))
        # `everysec` writes to the file at once, and syncs it within the second.
        server.pod.kill()
        await asyncio.to_thread(server.start)
        found = await asyncio.gather(*(store.get(f"{place}") for place in range(8)))
        assert [each is not None for each in found] == [kept] * 8


async def test_a_server_that_hangs_is_unavailable_in_bounded_time(server: RedisServer) -> None:
    async with opened(server.url, timeout_seconds=0.5) as store:
        await store.create(record("one"))
        server.pod.pause()
        before = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await store.ping()
        (error,) = await store.append([Append(SessionKey("one", 1), 3, (5,))])
        assert isinstance(error, StoreUnavailableError)
        assert time.monotonic() - before < 10
        server.pod.resume()
        await until_taken(store, "one", 5, 6)
        assert await committed(store, "one") == (5, 6)


async def test_a_primary_that_was_demoted_is_left(server: RedisServer, tmp_path: Path) -> None:
    """Behind one address, as a service of Kubernetes: who is connected already stays where it was."""
    with RedisServer("next", tmp_path) as other:
        async with Relay(server.port) as relay, opened(relay.url) as store:
            await store.create(record("one"))
            other.asked.replicaof(HOST, str(server.port))
            other.until(lambda: other.info("replication")["master_link_status"] == "up")
            other.asked.replicaof("NO", "ONE")
            server.asked.replicaof(HOST, str(other.port))
            (error,) = await store.append([Append(SessionKey("one", 1), 3, (5,))])
            assert isinstance(error, StoreUnavailableError)
            with pytest.raises(StoreUnavailableError, match="read only"):
                await store.ping()
            relay.upstream = other.port
            await commit(store, "one", 5)
            assert await committed(store, "one") == (5,)


def is_away() -> bool:
    """What the metric says of the store."""
    return REGISTRY.get_sample_value("paceline:store_away") == 1


@asynccontextmanager
async def committing(store: RedisStore, *, strict: bool = False) -> AsyncIterator[Committer]:
    committer = Committer(store, strict=strict, patience_seconds=60)
    async with committer.running():
        yield committer


class Client:
    """What a session's client is told."""

    def __init__(self, committer: Committer, name: str) -> None:
        self._committer, self.key = committer, SessionKey(name, 1)
        self._events: asyncio.Queue[Event] = committer.open(record(name))

    def draw(self, token: int) -> None:
        self._committer.push([(self.key, StepOutcome((token,), 0))])

    async def hears(self, *, durable: bool) -> int:
        event = await asyncio.wait_for(self._events.get(), 30)
        assert isinstance(event, Tokens)
        assert event.durable == durable
        return event.token_ids[0]

    @property
    def hears_nothing(self) -> bool:
        return self._events.empty()


async def test_a_full_server_is_away_until_it_takes_writes_again(server: RedisServer) -> None:
    async with opened(server.url) as store, committing(store) as committer:
        await store.create(record("one"))
        client = Client(committer, "one")
        server.asked.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailableError, match="maxmemory"):
            await store.ping()
        # Longer than it takes to look several times whether the store is back.
        for token in range(20):
            client.draw(token)
            assert await client.hears(durable=False) == token
            assert is_away()
            await asyncio.sleep(0.05)
        server.asked.config_set("maxmemory", 0)
        await wait_until(lambda: not is_away(), "it is found")
        client.draw(20)
        assert await client.hears(durable=True) == 20
        assert await committed(store, "one") == tuple(range(21))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with redis_cluster(tmp_path) as made:
        yield made


def named_in(cluster: Cluster, server: RedisServer) -> str:
    """A session that lives there."""
    return next(
        name for name in map(str, range(1000)) if cluster.owner(f"paceline:{{{name}}}:meta") is server
    )


@pytest.mark.parametrize("hangs", [False, True], ids=["dead", "hung"])
async def test_relaxed_one_primary_of_a_cluster_is_away(cluster: Cluster, hangs: bool) -> None:
    away, well = (named_in(cluster, server) for server in cluster.primaries[:2])
    async with opened(cluster.url, timeout_seconds=1) as store, committing(store) as committer:
        for name in (away, well):
            await store.create(record(name))
        lost, kept = Client(committer, away), Client(committer, well)
        cluster.primaries[0].pod.pause() if hangs else cluster.primaries[0].pod.kill()
        lost.draw(0)
        assert await lost.hears(durable=False) == 0
        # Who is at the other primaries is recorded still.
        kept.draw(1)
        assert await kept.hears(durable=False) == 1

        async def is_recorded() -> bool:
            return await committed(store, well) == (1,)

        await wait_until(is_recorded, "it is recorded")
        if hangs:
            cluster.primaries[0].pod.resume()
        else:
            await asyncio.to_thread(cluster.primaries[0].start)
        await wait_until(lambda: not is_away(), "it is found")
        assert await committed(store, away) == (0,)


async def test_strict_one_primary_of_a_cluster_is_away(cluster: Cluster) -> None:
    away, well = (named_in(cluster, server) for server in cluster.primaries[:2])
    async with opened(cluster.url) as store, committing(store, strict=True) as committer:
        for name in (away, well):
            await store.create(record(name))
        held, kept = Client(committer, away), Client(committer, well)
        cluster.primaries[0].pod.kill()
        held.draw(0)
        for token in range(3):
            kept.draw(token)
            assert await kept.hears(durable=True) == token
        assert held.hears_nothing
        await asyncio.to_thread(cluster.primaries[0].start)
        assert await held.hears(durable=True) == 0
        assert await committed(store, away) == (0,)


async def test_a_replica_takes_over_in_a_cluster(tmp_path: Path) -> None:
    with redis_cluster(tmp_path, replicas=True, node_timeout_ms=1000) as cluster:
        name = named_in(cluster, cluster.primaries[0])
        async with opened(cluster.url) as store:
            await store.create(record(name))
            await commit(store, name, 5)
            await asyncio.to_thread(cluster.primaries[0].replicated)
            cluster.primaries[0].pod.kill()
            await until_taken(store, name, 5, 6)
            assert await committed(store, name) == (5, 6)
            # The old primary comes back as the new one's replica.
            await asyncio.to_thread(cluster.primaries[0].start)
            await until_taken(store, name, 5, 6, 7)
            assert await committed(store, name) == (5, 6, 7)


async def test_a_slot_moves_while_its_session_goes_on(cluster: Cluster) -> None:
    """In the middle of it each key is at one of two primaries: a call waits or fails, none is wrong."""
    here, there = (each.asked for each in cluster.primaries[:2])
    name = named_in(cluster, cluster.primaries[0])
    keys = [f"paceline:{{{name}}}:{part}" for part in ("meta", "ids", "logprobs")]
    slot = here.cluster("keyslot", name)
    here_id, there_id = here.cluster("myid"), there.cluster("myid")
    async with opened(cluster.url, timeout_seconds=1) as store:
        await store.create(record(name))
        await commit(store, name, 0)
        there.cluster("setslot", slot, "importing", here_id)
        here.cluster("setslot", slot, "migrating", there_id)
        await commit(store, name, 0, 1)
        for key in keys:
            here.migrate(HOST, cluster.primaries[1].port, key, 0, 5000)
            (error,) = await store.append([Append(SessionKey(name, 1), 3, (0, 1, 2))])
            assert error is None or isinstance(error, StoreUnavailableError)
        for asked in (there, here):
            asked.cluster("setslot", slot, "node", there_id)
        found = await committed(store, name)
        assert found in {(0, 1), (0, 1, 2)}
        await commit(store, name, *found, 7)
        assert await committed(store, name) == (*found, 7)


async def test_what_a_failover_lost_the_owner_restores(tmp_path: Path) -> None:
    with watched_redis(tmp_path) as redis:
        async with opened(redis.url) as store:
            await store.create(record("one"))
            await commit(store, "one", 5)
            await asyncio.to_thread(redis.primary.replicated)
            redis.forget_to_replicate()
            await commit(store, "one", 5, 6)
            await store.create(record("two"))
            await asyncio.to_thread(redis.fail_over)
            assert await committed(store, "one") == (5,)
            assert await store.get("two") is None
            (error,) = await store.append([Append(SessionKey("one", 1), 5, (7,), FinishReason.STOP)])
            assert isinstance(error, BaseMismatchError)
            await store.restore(record("one", 1, (5, 6, 7)))
            assert await committed(store, "one") == (5, 6, 7)
