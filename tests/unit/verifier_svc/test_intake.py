"""What a drafter says of the hidden states that it took in: believed where it can be, and never free."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from paceline.features import FeatureGrant
from paceline.session import SessionKey
from paceline.v1 import verifier_pb2
from verifier_svc.control import DraftControl
from verifier_svc.drafters import DrafterStream, DrafterStreams
from verifier_svc.fairness import WorkBudget
from verifier_svc.features import StateFlow
from verifier_svc.intake import Intake
from verifier_svc.session_drafts import SessionDrafts, TreeBounds
from verifier_svc.sessions import SessionTable
from verifier_svc.standing import JUDGED_TREES, AsideReason, Standings

GRANT = FeatureGrant((1,), 8, "float32")
KEY = SessionKey("s", 1)


class World:
    """A stream with a window of four positions, all under way."""

    def __init__(self) -> None:
        table, streams = SessionTable(4), DrafterStreams()
        self.standings = Standings()
        control = DraftControl(table, draft_rows=16, max_tree_nodes=4, max_wait_seconds=0.0)
        bounds = TreeBounds(vocab_size=100, max_nodes=4, max_depth=4)
        drafts = SessionDrafts(
            table, control, streams, self.standings, bounds, on_aside=lambda key, seconds: None
        )
        self.flow = StateFlow(GRANT, 4 * GRANT.position_bytes)
        self.granted = streams.open("granted", "g", 0, drafts.ledger(), flow=self.flow)
        self.plain = streams.open("plain", "p", 0, drafts.ledger())
        self.flow.join(KEY, 0)
        self.flow.told(KEY, 99)
        for run in self.flow.following(lambda key: 99):
            assert self.flow.sent(run)
        self.granted.ledger.sent_states(1)
        self._intake = Intake(drafts, streams, self.standings, WorkBudget(share=1.0, burst=1.0))

    async def says(self, stream: DrafterStream, positions: float) -> None:
        taken = round(positions * GRANT.position_bytes)
        await self._intake.take(verifier_pb2.DraftRequest(features_taken=taken), stream)

    def room(self) -> int:
        return sum(run.count for run in self.flow.following(lambda key: 99))


@pytest.fixture
async def world() -> World:
    return World()


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_what_was_taken_in_makes_room_and_is_no_fault(world: World) -> None:
    before = counted("paceline:unasked_total", what="message")
    world.granted.wake.clear()
    await world.says(world.granted, 3)
    assert world.room() == 3
    assert world.granted.wake.is_set()
    assert counted("paceline:unasked_total", what="message") == before


@pytest.mark.parametrize("positions", [4.1, 10_000])
async def test_what_cannot_have_been_taken_in_is_ignored_and_counted(world: World, positions: float) -> None:
    false = counted("paceline:false_acknowledgements_total")
    unasked = counted("paceline:unasked_total", what="message")
    await world.says(world.granted, positions)
    assert world.room() == 0
    assert counted("paceline:false_acknowledgements_total") == false + 1
    assert counted("paceline:unasked_total", what="message") == unasked + 1


async def test_a_number_that_shrinks_is_ignored_and_counted(world: World) -> None:
    await world.says(world.granted, 3)
    false = counted("paceline:false_acknowledgements_total")
    await world.says(world.granted, 2)
    assert world.room() == 3
    assert counted("paceline:false_acknowledgements_total") == false + 1


async def test_who_was_granted_nothing_took_nothing_in(world: World) -> None:
    false = counted("paceline:false_acknowledgements_total")
    await world.says(world.plain, 1)
    assert counted("paceline:false_acknowledgements_total") == false + 1


async def test_who_says_it_over_and_over_is_put_aside(world: World) -> None:
    for _ in range(JUDGED_TREES + 1):
        await world.says(world.granted, 1)
    assert world.standings.reason_aside("granted") is AsideReason.FLOOD
