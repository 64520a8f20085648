"""Hidden states all the way: from a verifier's pool over a drafter's stream to a method that wants them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from drafter_svc.config import DrafterSettings
from drafter_svc.factory import factories
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Ask, FeatureWant, Method, MethodFactory, Needs, Target
from drafter_svc.service import Drafter
from paceline.client import Generation
from paceline.service.settings import load_settings
from paceline.tree import TokenTree
from tests.hidden_states import Reference
from tests.pods import Pods
from tests.streams import Stream
from tests.waiting import wait_until

LAYERS = (0, 2)
ASKED = [
    Generation(text="the quick brown fox " * length, max_tokens=900, temperature=0.8, seed=length)
    for length in (1, 9, 40)
]


@dataclass
class Kept:
    """What a method keeps of one session."""

    session: Hypothesis
    states: bytearray = field(default_factory=bytearray)
    count: int = 0
    # How often it was sent them from the first position on.
    begun: int = 0


class Recorder(Method):
    """Keeps states, and drafts nothing."""

    name = "recorder"

    def __init__(self, target: Target) -> None:
        assert target.features is not None
        self.grant = target.features
        self.kept: dict[str, Kept] = {}
        # Ids and states of the sessions that it was told to forget.
        self.done: list[tuple[list[int], NDArray[np.float32]]] = []
        self.to_lose: set[str] = set()
        self.lock = threading.Lock()

    def attach(self, session: Hypothesis) -> None:
        with self.lock:
            self.kept[session.key.session_id] = Kept(session)

    def lacks_from(self, session: Hypothesis) -> int | None:
        kept = self.kept.get(session.key.session_id)
        return kept.count if kept is not None else 0

    def take_states(self, session: Hypothesis, position: int, states: memoryview) -> None:
        kept = self.kept[session.key.session_id]
        assert position == kept.count
        kept.begun += position == 0
        kept.states += states
        kept.count += len(states) // self.grant.position_bytes

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        for ask in asks:
            kept = self.kept[ask.session.key.session_id]
            assert kept.count >= ask.length - 1, "asked for when its states are there"
            if ask.session.key.session_id in self.to_lose:
                self.to_lose.discard(ask.session.key.session_id)
                kept.states.clear()
                kept.count = 0
        return [TokenTree() for _ in asks]

    def forget(self, session_id: str) -> None:
        with self.lock:
            if (kept := self.kept.pop(session_id, None)) is not None:
                flat = np.frombuffer(bytes(kept.states), "<f4")
                states = flat.reshape(-1, len(self.grant.layers), self.grant.width)
                self.done.append((list(kept.session.ids), states))


class RecorderFactory(MethodFactory):
    """Of any target whose verifier keeps the layers."""

    name = "recorder"
    computes = True
    weights = ()
    needs = Needs(features=(FeatureWant(LAYERS),))

    def __init__(self) -> None:
        self.methods: list[Recorder] = []

    def create(self, target: Target) -> Recorder:
        self.methods.append(Recorder(target))
        return self.methods[-1]


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    flags = ("--keep-states", "0,1,2")
    with Pods(tmp_path, tiny_model, redis_url, verifier_flags=flags) as made:
        yield made.start(drafters=False)


@asynccontextmanager
async def drafter(pods: Pods) -> AsyncIterator[RecorderFactory]:
    """The fleet's one drafter, in this process: with the text's method and the recorder."""
    recorder = RecorderFactory()
    host, _, port = pods.drafter.rpartition(":")
    settings = load_settings(DrafterSettings, host=host, port=int(port), drafter_id="d", grace_seconds=0)
    async with Drafter.running(settings, [*factories(settings), recorder]):
        await wait_until(
            lambda: all(pod.healthy for pod in pods.gateways["gateway"].fleet().drafters), "seen"
        )
        yield recorder


def agree(method: Recorder, model: Path) -> None:
    reference = Reference(model)
    for ids, states in method.done:
        np.testing.assert_allclose(states, reference.states(ids, LAYERS)[: len(states)], atol=1e-4, rtol=0)


async def test_a_method_has_the_states_of_its_sessions(pods: Pods, tiny_model: Path) -> None:
    async with drafter(pods) as recorder:
        streams = [Stream(pods, asked) for asked in ASKED]
        for stream in streams:
            await stream.whole()
        await wait_until(lambda: bool(recorder.methods) and not recorder.methods[0].kept, "all is forgotten")
    [method] = recorder.methods
    assert method.grant.layers == LAYERS
    assert len(method.done) == len(ASKED)
    assert all(len(states) > 300 for _, states in method.done)
    agree(method, tiny_model)


async def test_states_that_a_method_lost_come_again(pods: Pods, tiny_model: Path) -> None:
    async with drafter(pods) as recorder:
        stream = Stream(pods, Generation(text="to be or not to be", max_tokens=4000, temperature=0))
        await wait_until(lambda: bool(recorder.methods) and bool(recorder.methods[0].kept), "it drafts")
        [method] = recorder.methods
        [(session_id, kept)] = method.kept.items()
        for times in (1, 2, 3):
            await wait_until(lambda times=times: kept.begun == times and kept.count > 100, "it has states")
            if times < 3:
                method.to_lose.add(session_id)
        await stream.whole()
        await wait_until(lambda: not method.kept, "it is forgotten")
    assert kept.begun == 3
    agree(method, tiny_model)
