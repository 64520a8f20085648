"""Whatever is called in whatever order, a store says and keeps what a model does that fits on one page."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis, RedisCluster

from paceline.redis.url import open_url
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey
from paceline.store import (
    Append,
    BaseMismatchError,
    FencedError,
    MemoryStore,
    RedisStore,
    SessionRecord,
    SessionStore,
    StoreError,
    UnknownSessionError,
)
from paceline.store.base import SessionExistsError

PROMPT = (7, 8)
SAMPLING = SamplingParams(max_tokens=9)

Outcome = type[StoreError] | None


@dataclass
class Session:
    epoch: int
    # Prompt and committed tokens.
    text: list[int]
    finish: FinishReason | None
    reply: str


class Model:
    """What the contract says, in the plainest words."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}

    def create(self, name: str, session: Session) -> Outcome:
        if self.sessions.setdefault(name, session) != session:
            return SessionExistsError
        return None

    def append(
        self, name: str, epoch: int, base: int, ids: Sequence[int], finish: FinishReason | None
    ) -> Outcome:
        session = self.sessions.get(name)
        if session is None or session.epoch < epoch:
            return UnknownSessionError
        if session.epoch > epoch:
            return FencedError
        text = session.text
        if not len(PROMPT) <= base <= len(text):
            return BaseMismatchError
        if any(text[place] != token for place, token in enumerate(ids, base) if place < len(text)):
            return BaseMismatchError
        text += ids[len(text) - base :]
        session.finish = finish or session.finish
        return None

    def claim(self, name: str, epoch: int) -> Outcome:
        session = self.sessions.get(name)
        if session is None:
            return UnknownSessionError
        if session.epoch >= epoch:
            return FencedError
        session.epoch = epoch
        return None

    def restore(self, name: str, session: Session) -> Outcome:
        known = self.sessions.get(name)
        if known is not None and known.epoch > session.epoch:
            return FencedError
        late = (
            known is not None
            and known.epoch == session.epoch
            and known.text[: len(session.text)] == session.text
            and session.finish is None
        )
        if not late:
            self.sessions[name] = session
        return None


class Past(Protocol):
    """What happens to a store's data behind its back."""

    async def snapshot(self, names: Sequence[str]) -> Any:
        """All that is kept of these."""

    async def go_back(self, names: Sequence[str], to: Any) -> None:
        """Be what `snapshot` saw, or empty where `to` is None."""


class MemoryPast:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def snapshot(self, names: Sequence[str]) -> Any:
        return dict(self._store._records)

    async def go_back(self, names: Sequence[str], to: Any) -> None:
        self._store._records = dict(to or {})


class RedisPast:
    def __init__(self, asked: Redis | RedisCluster) -> None:
        self._asked = asked

    async def snapshot(self, names: Sequence[str]) -> Any:
        return {key: await self._asked.dump(key) for key in self._keys(names)}

    async def go_back(self, names: Sequence[str], to: Any) -> None:
        for key in self._keys(names):
            await self._asked.delete(key)
            if to and to[key] is not None:
                await self._asked.restore(key, 60_000, to[key])

    def _keys(self, names: Sequence[str]) -> list[str]:
        return [f"paceline:{{{name}}}:{part}" for name in names for part in ("meta", "ids")]


runs = itertools.count()
places = st.integers(0, 1)
epochs = st.integers(1, 4)
# Few, so that other owners often draw the same.
tokens = st.lists(st.sampled_from([5, 2**32 - 1]), max_size=4)
finishes = st.sampled_from([None, None, FinishReason.STOP, FinishReason.LENGTH])
sessions = st.builds(
    Session, epochs, tokens.map(lambda ids: [*PROMPT, *ids]), finishes, st.sampled_from(["", "its client"])
)
unfinished = st.builds(Session, epochs, tokens.map(lambda ids: [*PROMPT, *ids]), st.none(), st.just("it"))
# A session, how far from its end, under which epoch, what.
appends = st.tuples(places, st.integers(-4, 1), epochs, tokens, finishes)


class Machine(RuleBasedStateMachine):
    """`store` and `model` get the same calls. Subclasses are bound to a store."""

    store: SessionStore
    past: Past
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        run = next(runs)
        self.names = [f"model-{run}-{place}" for place in range(2)]
        self.model = Model()
        self.seen: tuple[Any, dict[str, Session]] = (None, {})

    def record(self, name: str, session: Session) -> SessionRecord:
        committed = tuple(session.text[len(PROMPT) :])
        key = SessionKey(name, session.epoch)
        return SessionRecord(key, "m", PROMPT, SAMPLING, committed, session.reply, session.finish)

    def said(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What a call gives, or the type of its error."""
        try:
            return self.runner.run(call)
        except StoreError as error:
            return type(error)

    @rule(place=places, session=unfinished)
    def create(self, place: int, session: Session) -> None:
        name = self.names[place]
        said = self.said(self.store.create(self.record(name, session)))
        assert said == self.model.create(name, copy.deepcopy(session))

    @rule(several=st.lists(appends, min_size=1, max_size=4))
    def append(self, several: list[tuple[int, int, int, list[int], FinishReason | None]]) -> None:
        calls, expected = [], []
        for place, distance, epoch, ids, finish in several:
            name = self.names[place]
            known = self.model.sessions.get(name)
            base = max(0, (len(known.text) if known else len(PROMPT)) + distance)
            calls.append(Append(SessionKey(name, epoch), base, tuple(ids), finish))
            expected.append(self.model.append(name, epoch, base, ids, finish))
        errors = self.said(self.store.append(calls))
        assert [error and type(error) for error in errors] == expected

    @rule(place=places, epoch=epochs)
    def claim(self, place: int, epoch: int) -> None:
        name = self.names[place]
        said = self.said(self.store.claim(SessionKey(name, epoch)))
        expected = self.model.claim(name, epoch)
        assert said == (expected or self.record(name, self.model.sessions[name]))

    @rule(place=places, session=sessions)
    def restore(self, place: int, session: Session) -> None:
        name = self.names[place]
        said = self.said(self.store.restore(self.record(name, session)))
        assert said == self.model.restore(name, copy.deepcopy(session))

    @rule()
    def remember(self) -> None:
        """A replica gets what is there."""
        self.seen = (self.runner.run(self.past.snapshot(self.names)), copy.deepcopy(self.model.sessions))

    @rule()
    def fail_over(self) -> None:
        """To that replica."""
        snapshot, known = self.seen
        self.runner.run(self.past.go_back(self.names, snapshot))
        self.model.sessions = copy.deepcopy(known)

    @rule()
    def lose_everything(self) -> None:
        self.runner.run(self.past.go_back(self.names, None))
        self.model.sessions = {}

    @invariant()
    def they_keep_the_same(self) -> None:
        for name in self.names:
            session = self.model.sessions.get(name)
            assert self.said(self.store.get(name)) == (session and self.record(name, session))


@pytest.fixture(params=["memory", "redis", "cluster"])
def machine(request: pytest.FixtureRequest) -> Iterator[type[Machine]]:
    with asyncio.Runner() as runner:

        async def opened(url: str) -> tuple[SessionStore, Past, list[Any]]:
            if not url:
                memory = MemoryStore()
                return memory, MemoryPast(memory), []
            asked = open_url(url, 30)
            made = RedisStore(url, ttl_seconds=60, timeout_seconds=30)
            return made, RedisPast(asked), [asked.aclose]

        fixture = {"redis": "redis_url", "cluster": "redis_cluster_url"}.get(request.param)
        store, past, closes = runner.run(opened(request.getfixturevalue(fixture) if fixture else ""))

        class Bound(Machine):
            pass

        Bound.store, Bound.past, Bound.runner = store, past, runner
        yield Bound
        for close in (store.close, *closes):
            runner.run(close())


def test_a_store_is_its_model(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
