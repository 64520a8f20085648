"""States are read for whom they are meant: of sessions that the stream has, as far as they are computed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bench.engine_loop import EngineLoop, Running, generate, loaded
from paceline.engine.engine import Engine
from paceline.features import FeatureChunk, FeatureRequest
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from verifier_svc.drafters import DrafterStream, DrafterStreams
from verifier_svc.feature_reads import FeatureReads
from verifier_svc.features import StateFlow
from verifier_svc.ledger import Ledger
from verifier_svc.sessions import Session, SessionTable

KEYS = [SessionKey(name, 1) for name in ("a", "b")]
LAYERS = (0, 2)
WEIGHTS = "c" * 32
SAMPLING = SamplingParams(max_tokens=60)


@dataclass
class World:
    engine: Engine
    table: SessionTable
    reads: FeatureReads
    stream: DrafterStream

    @property
    def flow(self) -> StateFlow:
        assert self.stream.flow is not None
        return self.stream.flow

    def session(self, key: SessionKey) -> Session:
        found = self.table.get(key.session_id)
        assert found is not None
        return found

    def expected(self, key: SessionKey, start: int, count: int) -> bytes:
        states = self.engine.read_states(self.session(key).blocks, start, count, LAYERS)
        return bytes(states.numpy().tobytes())


@pytest.fixture
def world(tiny_model: Path) -> Iterator[World]:
    """Two computed sessions that one stream has joined from their beginning."""
    with loaded(tiny_model) as decoder:
        loop = EngineLoop.of(decoder, blocks=8, keep_states=[0, 1, 2])
        running = [Running([5 + place + 3 * at for at in range(40)], 40, SAMPLING) for place in range(2)]
        generate(loop, running, 20)
        table = SessionTable(4)
        for key, each in zip(KEYS, running, strict=True):
            table.add(
                Session(
                    key, 40, each.token_ids, SAMPLING, 100, blocks=each.blocks, num_computed=each.num_computed
                )
            )
        reads = FeatureReads(loop.engine, table, weights_fingerprint=WEIGHTS)
        granted = reads.kept.grant([FeatureRequest(LAYERS, 1 << 16, WEIGHTS)])
        assert granted is not None
        ledger = Ledger(max_sessions=4, opened=lambda: 0)
        stream = DrafterStreams().open("peer", "d", 0, ledger, flow=StateFlow(*granted))
        made = World(loop.engine, table, reads, stream)
        for key in KEYS:
            made.session(key).drafting.stream_id = stream.stream_id
            made.flow.join(key, 0)
            made.flow.told(key, 1000)
        yield made
        reads.close()


async def test_what_is_computed_is_read_as_the_engine_has_it(world: World) -> None:
    grant = world.flow.grant
    assert (grant.layers, grant.width, grant.dtype) == (LAYERS, 64, "float32")
    computed = world.session(KEYS[0]).num_computed
    assert computed == 59
    assert await world.reads.following(world.stream) == [
        FeatureChunk(key, 0, computed, world.expected(key, 0, computed)) for key in KEYS
    ]
    assert await world.reads.following(world.stream) == []
    world.flow.join(KEYS[1], 50)
    world.flow.told(KEYS[1], 55)
    (chunk,) = await world.reads.following(world.stream)
    assert (chunk.key, chunk.position, chunk.count) == (KEYS[1], 50, 4)
    assert np.frombuffer(chunk.states, dtype="<f4").shape == (4 * 2 * 64,)


@pytest.mark.parametrize("what", ["taken over", "preempted", "joined anew", "left"])
async def test_what_changes_while_it_is_read_is_left_out(world: World, what: str) -> None:
    session = world.session(KEYS[0])
    with world.table.lock:
        reading = asyncio.create_task(world.reads.following(world.stream))
        # It has chosen what to read, and its thread waits for the lock.
        await asyncio.sleep(0)
        if what == "taken over":
            session.drafting.stream_id = 99
        elif what == "preempted":
            session.num_computed = 0
            session.blocks.clear()
        elif what == "joined anew":
            world.flow.join(KEYS[0], 7)
        else:
            world.flow.leave("a")
    assert [chunk.key for chunk in await reading] == [KEYS[1]]
    assert world.flow.sent_bytes == 59 * world.flow.grant.position_bytes


@pytest.mark.parametrize("what", ["ended", "preempted", "another epoch"])
async def test_a_session_whose_states_are_gone_is_passed_over(world: World, what: str) -> None:
    session = world.session(KEYS[0])
    if what == "ended":
        world.table.remove(session)
    elif what == "preempted":
        session.num_computed = 0
        session.blocks.clear()
    else:
        session.key = SessionKey("a", 2)
    assert [chunk.key for chunk in await world.reads.following(world.stream)] == [KEYS[1]]
    # A preempted one is computed again; the others are no longer this stream's.
    assert len(world.flow) == (2 if what == "preempted" else 1)


async def test_what_was_sent_is_remembered_for_the_next_drafter(world: World) -> None:
    await world.reads.following(world.stream)
    assert [world.session(key).states_sent for key in KEYS] == [59, 59]
