"""What goes out after a step: tokens to the session's client, verdicts to its drafter."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest

from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import SessionRecord
from paceline.verdict import Verdict
from verifier_svc.commit import Committer
from verifier_svc.control import DraftControl
from verifier_svc.delivery import Delivery
from verifier_svc.drafters import MAX_VERDICTS, DrafterStream, DrafterStreams
from verifier_svc.drafting import Drafting
from verifier_svc.events import Broken, Faulty, StepOutcome, Tokens
from verifier_svc.progress import SessionStep
from verifier_svc.session_drafts import SessionDrafts, TreeBounds
from verifier_svc.session_trace import StepTimes
from verifier_svc.sessions import Session, SessionTable
from verifier_svc.standing import HARMFUL_TREES, AsideReason, Standings

KEY = SessionKey("s", 1)
TIMES = StepTimes(1, began=0)


@dataclass
class World:
    committer: Committer
    streams: DrafterStreams
    standings: Standings
    table: SessionTable
    delivery: Delivery
    stream: DrafterStream
    session: Session
    failures: list[str] = field(default_factory=list)


@pytest.fixture
async def world() -> World:
    """A session that is followed by a client and drafted for by a drafter."""
    table = SessionTable(4)
    streams, standings = DrafterStreams(), Standings()
    committer = Committer(None, strict=False, patience_seconds=9)
    control = DraftControl(table, draft_rows=16, max_tree_nodes=4, max_wait_seconds=0.0)
    drafts = SessionDrafts(
        table, control, streams, standings, TreeBounds(100, 4, 4), on_aside=committer.say_aside
    )
    failures: list[str] = []
    delivery = Delivery(committer, drafts, streams, standings, on_failure=lambda: failures.append("engine"))
    stream = streams.open("peer", "drafter", 0, drafts.ledger())
    session = Session(
        KEY,
        3,
        [1, 2, 3],
        SamplingParams(max_tokens=9),
        12,
        drafting=Drafting(stream.stream_id, told_length=3),
    )
    table.add(session)
    return World(committer, streams, standings, table, delivery, stream, session, failures)


def _record() -> SessionRecord:
    return SessionRecord(KEY, "m", (1, 2, 3), SamplingParams(max_tokens=9))


def _step(stream_id: int, *, drafted: int = 0) -> SessionStep:
    verdict = Verdict(KEY, 3, committed=(5,), drafted=drafted, draft_budget=4)
    return SessionStep(KEY, StepOutcome((5,), 0, drafted=drafted), verdict, stream_id)


def _on_another_thread(call: object, *arguments: object) -> None:
    thread = threading.Thread(target=call, args=arguments)  # type: ignore[arg-type]
    thread.start()
    thread.join()


async def test_a_step_reaches_the_client_and_the_drafter(world: World) -> None:
    async with world.committer.running():
        events = world.committer.open(_record())
        _on_another_thread(world.delivery.stepped, [_step(world.stream.stream_id)], TIMES)
        assert await asyncio.wait_for(events.get(), 5) == Tokens(3, (5,), 0, False)
        assert world.stream.take() == ([_step(1).verdict], [])


async def test_a_step_is_for_no_drafter_where_none_is_spoken_to(world: World) -> None:
    world.delivery.stepped([_step(0), _step(99)], TIMES)
    await asyncio.sleep(0)
    assert world.stream.take() == ([], [])


async def test_a_drafter_that_reads_nothing_loses_its_sessions_at_once(world: World) -> None:
    world.stream.send([_step(1).verdict] * MAX_VERDICTS)
    world.delivery.stepped([_step(world.stream.stream_id)], TIMES)
    await asyncio.sleep(0)
    assert world.streams.get(world.stream.stream_id) is None
    assert world.session.drafting.stream_id == 0


async def test_a_session_that_failed_ends_behind_its_tokens(world: World) -> None:
    async with world.committer.running():
        events = world.committer.open(_record())
        world.delivery.stepped([_step(0)], TIMES)
        world.delivery.session_failed(world.session, Faulty("no"))
        assert await asyncio.wait_for(events.get(), 5) == Tokens(3, (5,), 0, False)
        assert await asyncio.wait_for(events.get(), 5) == Faulty("no")
    ((told,), _) = world.stream.take()
    assert told.finished


async def test_a_drafter_whose_trees_make_steps_fail_is_put_aside(world: World) -> None:
    for _ in range(HARMFUL_TREES):
        world.delivery.tree_failed(world.stream.stream_id)
    world.delivery.tree_failed(99)
    await asyncio.sleep(0)
    assert world.standings.reason_aside("peer") is AsideReason.HARMFUL


async def test_all_hear_that_the_engine_has_failed(world: World) -> None:
    events = world.committer.open(_record())
    _on_another_thread(world.delivery.engine_failed)
    assert await asyncio.wait_for(events.get(), 5) == Broken()
    assert world.failures == ["engine"]
