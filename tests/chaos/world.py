"""A whole fleet under load that faults are tried on: two of each service, and Redis."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import grpc

from paceline.client import GatewayError, Generation, SyncGatewayClient
from paceline.local.plan import HOST
from paceline.store import RedisStore, SessionRecord
from tests.chaos.clients import Face
from tests.chaos.eavesdropper import LAYERS, Eavesdropper
from tests.chaos.faults import Fault, Heal, Kind, Stage, Target
from tests.chaos.load import Load, Session, Text
from tests.chaos.network import Network, Packets, Proxies
from tests.neural import neural_flags
from tests.pods import Pods
from tests.redis_servers import RedisServer
from tests.waiting import wait_until

REDIS = "redis"
# Until every session goes on without what was struck.
_RECOVERY_SECONDS = 45.0
# Until a store that was away has what it missed.
_RECORDED_SECONDS = 10.0
# More tokens than were on their way when a fault struck.
_GOES_ON_TOKENS = 12
_SOON_SECONDS = 1.0


@dataclass(slots=True)
class Outcome:
    """What became of one fault."""

    fault: Fault
    struck: tuple[str, ...]
    # Sessions that were running, by their stage, and those of them that moved to another verifier.
    running: Counter[Stage]
    moved: Counter[Stage] = field(default_factory=Counter)
    # Seconds between two tokens, of every session that moved and had one before.
    pauses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class World:
    """A running fleet with its load; made by `running`."""

    def __init__(
        self,
        pods: Pods,
        redis: RedisServer,
        store: RedisStore,
        network: Network,
        load: Load,
        eavesdropper: Eavesdropper,
        *,
        strict: bool,
        seed: int,
    ) -> None:
        self.load = load
        self.eavesdropper = eavesdropper
        # What can happen here.
        self.kinds = (Kind.KILL, Kind.PAUSE, *network.cuts)
        self._pods = pods
        self._redis = redis
        self._store = store
        self._network = network
        self._strict = strict
        self._random = Random(seed)
        self._judged = 0

    async def try_fault(self, fault: Fault) -> Outcome:
        """Strike when a session is at the fault's stage, heal, and see that all is as it was."""
        began = time.monotonic()
        names = tuple(self._choose(target) for target in fault.targets)
        struck: list[float] = []
        hit: dict[Session, tuple[Stage, int]] = {}
        moved_before = {session for session in list(self.load.running) if await self._epoch(session) > 1}

        def strike() -> None:
            hit.update((session, (session.stage, session.tokens)) for session in self.load.running)
            struck.append(time.monotonic())
            for name in names:
                self._strike(name, fault.kind)

        def all_go_on() -> bool:
            return all(
                session.ended_at is not None or session.tokens >= tokens + _GOES_ON_TOKENS
                for session, (_, tokens) in hit.items()
            )

        self.load.when(fault.stage, strike)
        await wait_until(lambda: bool(struck), f"a session is at {fault.stage}", 60)
        outcome = Outcome(fault, names, Counter(stage for stage, _ in hit.values()))
        if fault.heal is Heal.SOON or self._needs(fault.targets):
            await asyncio.sleep(_SOON_SECONDS)
        else:
            await _wait(outcome, all_go_on, "all sessions go on")
        for name in names:
            await self._heal(name, fault.kind)
        healed = time.monotonic()
        for name in names:
            # Not here: asking a service that is not up yet would hold the proxies up.
            await _in_thread(outcome, partial(self._wait_for_work, name))
        await _in_thread(outcome, self._pods.until_all_are_seen)
        await _wait(outcome, lambda: all(session.ended_at for session in hit), "all sessions end")
        for session, (stage, tokens) in hit.items():
            if session not in moved_before and await self._epoch(session) > 1:
                outcome.moved[stage] += 1
                if tokens and (pause := session.longest_pause(struck[0])):
                    outcome.pauses.append(pause)
        await self._judge(outcome, recorded_since=healed)
        outcome.seconds = time.monotonic() - began
        return outcome

    async def end(self) -> list[str]:
        """Stop the load; gives what is wrong then."""
        await self.load.stop()
        outcome = Outcome(Fault((), Kind.KILL, Stage.QUEUED, Heal.SOON), (), Counter())
        await self._judge(outcome, recorded_since=time.monotonic())
        try:
            await wait_until(lambda: not self._holders(), "nobody holds a session", _RECOVERY_SECONDS)
        except AssertionError as error:
            outcome.failures.append(f"stuck: {error}: {self._holders()}")
        outcome.failures += self.eavesdropper.failures
        for name, pod in self._pods.pods.items():
            if "Traceback" in pod.log.read_text():
                outcome.failures.append(f"{name} logged a traceback: {pod.log}")
        return outcome.failures

    def _holders(self) -> dict[str, int]:
        """Sessions held by each service that holds some."""
        pods = self._pods
        held = {each: pods.verifier_status(each).sessions for each in pods.verifiers}
        held |= {each: pods.drafter_status(each).sessions for each in pods.drafters}
        held |= {name: gateway.fleet().sessions for name, gateway in pods.gateways.items()}
        return {name: sessions for name, sessions in held.items() if sessions}

    def _choose(self, target: Target) -> str:
        names: dict[Target, Sequence[str]] = {
            Target.GATEWAY: list(self._pods.gateways),
            Target.VERIFIER: self._pods.verifiers,
            Target.DRAFTER: self._pods.drafters,
            Target.REDIS: [REDIS],
        }
        return self._random.choice(names[target])

    def _needs(self, targets: Collection[Target]) -> bool:
        """Whether sessions cannot go on before these are back: Redis, for tokens or for another gateway."""
        return Target.REDIS in targets and (self._strict or Target.GATEWAY in targets)

    def _strike(self, name: str, kind: Kind) -> None:
        if kind is Kind.KILL:
            self._pods.pods[name].kill()
        elif kind is Kind.PAUSE:
            self._pods.pods[name].pause()
        else:
            self._network.cut(name, kind)

    async def _heal(self, name: str, kind: Kind) -> None:
        if kind is Kind.PAUSE:
            self._pods.pods[name].resume()
        elif kind is not Kind.KILL:
            self._network.heal(name)
        elif name == REDIS:
            await asyncio.to_thread(self._redis.start)
            self._pods.pods[REDIS] = self._redis.pod
        else:
            self._pods.launch(name)

    def _wait_for_work(self, name: str) -> None:
        """Return once a service does what it is for; fail with its log when it does not."""
        done: list[float] = []

        def works() -> bool:
            with suppress(grpc.RpcError, GatewayError):
                done.append(self._work(name))
            return bool(done) and done[-1] > done[0]

        self._pods.pods[name].until(works)

    def _work(self, name: str) -> float:
        """What a service has done; grows while it is used. Raises where it does nothing."""
        if name == REDIS:
            return self.load.durable_at
        if name in self._pods.gateways:
            with SyncGatewayClient(self._pods.told[name], resume_s=0) as client:
                list(client.generate(Generation(text="hello", max_tokens=1), timeout_s=5))
            return time.monotonic()
        if name in self._pods.verifiers:
            return self._pods.verifier_status(name).committed_tokens
        return self._pods.drafter_status(name).drafted_tokens

    async def _epoch(self, session: Session) -> int:
        record = await self._record(session)
        return record.key.epoch if record is not None else 0

    async def _record(self, session: Session) -> SessionRecord | None:
        return await self._store.get(session.started.session_id) if session.started is not None else None

    async def _judge(self, outcome: Outcome, *, recorded_since: float) -> None:
        """Judge what clients have got, and for sessions that ended after `recorded_since` the store, too."""
        ended, self._judged = self.load.ended[self._judged :], len(self.load.ended)
        for session in ended:
            wrong = session.judge(self.load.expected[session.asked])
            if not wrong and (session.ended_at or 0) > recorded_since and not session.asked.stop:
                wrong = await self._judge_record(session, self.load.expected[session.asked])
            if wrong:
                outcome.failures.append(
                    f"{wrong} [{session.face}, seed {session.asked.seed}, {session.started}]"
                )

    async def _judge_record(self, session: Session, expected: Text) -> str:
        """Empty, or what is wrong with what the store comes to have of an ended session."""
        end = time.monotonic() + _RECORDED_SECONDS
        while True:
            record = await self._record(session)
            if record is not None and record.committed_ids == expected.token_ids:
                return ""
            if time.monotonic() > end:
                return f"lost: the store has {record}"
            await asyncio.sleep(0.05)


async def _wait(outcome: Outcome, condition: Callable[[], bool], what: str) -> None:
    try:
        await wait_until(condition, what, _RECOVERY_SECONDS)
    except AssertionError as error:
        outcome.failures.append(f"stuck: {error}")


async def _in_thread(outcome: Outcome, waiting: Callable[[], None]) -> None:
    try:
        await asyncio.to_thread(waiting)
    except AssertionError as error:
        outcome.failures.append(f"stuck: {error}")


@asynccontextmanager
async def running(
    folder: Path,
    model: Path,
    *,
    seed: int,
    durability: str = "relaxed",
    append_only: bool = True,
    drop_packets: bool = False,
    neural: bool = False,
) -> AsyncIterator[World]:
    """A fleet whose load runs; `drop_packets` in place of stalled and reset connections.

    `neural`: its drafters have models, too.
    """
    async with AsyncExitStack() as stack:
        pods = stack.enter_context(
            Pods(
                folder,
                model,
                "",
                verifiers=2,
                drafters=2,
                gateways=2,
                default_settings=True,
                durability=durability,
                verifier_flags=("--keep-states", ",".join(map(str, LAYERS))),
                drafter_flags=neural_flags(model, folder / "heads") if neural else (),
            )
        )
        network = Packets(pods.pods) if drop_packets else Proxies(pods.pods)
        await stack.enter_async_context(network)
        entrances = {name: gateway.grpc for name, gateway in pods.gateways.items()}
        services = {address: address for address in (*pods.verifiers, *pods.drafters)} | entrances
        pods.told = await network.join(services)
        urls = {name: urlsplit(gateway.http).netloc for name, gateway in pods.gateways.items()}
        told_urls = await network.join(urls)
        pods.groups = {name: network.group(name) for name in services}
        log = ("--appendonly", "yes" if append_only else "no")
        redis = stack.enter_context(RedisServer(REDIS, folder, log, group=network.group(REDIS)))
        pods.pods[REDIS] = redis.pod
        told = await network.join({REDIS: f"{HOST}:{redis.port}"})
        pods.redis_url = f"redis://{told[REDIS]}"
        await asyncio.to_thread(pods.start)
        store = RedisStore(redis.url, ttl_seconds=60)
        stack.push_async_callback(store.close)
        faces = {
            Face.GRPC: [pods.told[name] for name in entrances],
            Face.HTTP: [f"http://{address}" for address in told_urls.values()],
        }
        load = Load(faces, seed)
        await load.learn()
        load.start()
        eavesdropper = Eavesdropper([pods.told[each] for each in pods.verifiers], store, load, seed)
        listening = asyncio.create_task(eavesdropper.run())
        try:
            yield World(
                pods, redis, store, network, load, eavesdropper, strict=durability == "strict", seed=seed
            )
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
