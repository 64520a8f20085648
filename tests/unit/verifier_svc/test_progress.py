"""What a computed step does to a session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from paceline.engine.blocks import BlockAllocator
from paceline.engine.rows import Segment
from paceline.engine.verify import Decision
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey
from paceline.tree import TokenTree
from verifier_svc.control import DraftControl
from verifier_svc.drafting import Drafting
from verifier_svc.isolation import Computed
from verifier_svc.merge import merge
from verifier_svc.offers import Part
from verifier_svc.progress import Progress, SessionStep
from verifier_svc.scheduler import PlannedRows
from verifier_svc.sessions import Session, SessionTable

BLOCK = 4
STOP = 99
CHAIN = TokenTree((7, 8, 9), (-1, 0, 1), (-0.1, -0.1, -0.1))


@dataclass
class Checked:
    """In the place of the check for divergence."""

    stepped_of: list[tuple[int, int]] = field(default_factory=list)

    def stepped(self, session: Session, base: int, accepted: int) -> None:
        self.stepped_of.append((base, accepted))


class World:
    """One session of three prompt ids, at a verifier with four blocks."""

    def __init__(self, *, max_tokens: int = 50, stream_id: int = 1) -> None:
        self.table = SessionTable(4)
        self.allocator = BlockAllocator(4, BLOCK)
        control = DraftControl(self.table, draft_rows=8, max_tree_nodes=4, max_wait_seconds=0.0)
        self.checked = Checked()
        self.progress = Progress(self.table, self.allocator, control, self.checked)  # type: ignore[arg-type]
        self.session = Session(
            key=SessionKey("s", 1),
            prompt_length=3,
            token_ids=[1, 2, 3],
            sampling=SamplingParams(max_tokens=max_tokens, stop_token_ids=frozenset({STOP})),
            length_limit=3 + max_tokens,
            drafting=Drafting(stream_id=stream_id, told_length=3),
            opened_length=3,
        )
        self.table.add(self.session)
        self.allocator.extend(self.session.blocks, 2)

    def step(self, bonus: int, *, tree: TokenTree = CHAIN, accepted: int = 0, top_k: int = 0) -> SessionStep:
        """A step that computes all that is missing of the session, and accepts so many of `tree`'s nodes."""
        session = self.session
        run = session.token_ids[session.num_computed :]
        segment = Segment(run, session.num_computed, tuple(session.blocks))
        row = PlannedRows(
            session,
            segment,
            tree,
            bool(tree.tokens),
            session.drafting.stream_id,
            session.drafting.sources,
            merge([Part(tree, 0, fresh=True)]).nodes,
        )
        decision = _decision(range(accepted), bonus, top_k)
        with self.table.lock:
            (step,), faults = self.progress.apply(Computed([row], [(row, decision)]))
        assert not faults
        return step


def _decision(path: Sequence[int], bonus: int, top_k: int) -> Decision:
    return Decision(path=tuple(path), bonus=bonus, top_ids=(5,) * (4 * top_k), top_k=top_k)


def test_accepted_nodes_and_the_targets_own_token_are_appended() -> None:
    world = World()
    step = world.step(5, accepted=2)
    assert world.session.token_ids == [1, 2, 3, 7, 8, 5]
    # The own token's KV is computed by the next step.
    assert world.session.num_computed == 5
    assert (step.outcome.token_ids, step.outcome.accepted, step.outcome.drafted) == ((7, 8, 5), 2, 3)
    assert (step.verdict.base_length, step.verdict.committed) == (3, (7, 8, 5))
    assert (step.verdict.draft_budget, step.stream_id) == (4, 1)
    assert world.checked.stepped_of == [(3, 2)]
    asked = world.session.drafting.asks.on(world.session.length)
    assert asked is not None
    assert asked.since > 0.0
    totals = world.progress.totals
    assert (totals.session_steps, totals.drafted_tokens, totals.accepted_tokens, totals.committed_tokens) == (
        1,
        3,
        2,
        3,
    )


@pytest.mark.parametrize(
    ("tree", "bonus", "max_tokens", "tokens", "reason"),
    [
        (CHAIN, STOP, 50, (7, 8, 9, STOP), FinishReason.STOP),
        (TokenTree((7, STOP, 9), (-1, 0, 1), (-0.1,) * 3), 5, 50, (7, STOP), FinishReason.STOP),
        (CHAIN, 5, 4, (7, 8, 9, 5), FinishReason.LENGTH),
        (CHAIN, 5, 2, (7, 8), FinishReason.LENGTH),
    ],
    ids=["own token stops", "accepted token stops", "limit reached", "cut at the limit"],
)
def test_an_end_frees_the_kv_and_tells_the_drafter(
    tree: TokenTree, bonus: int, max_tokens: int, tokens: tuple[int, ...], reason: FinishReason
) -> None:
    world = World(max_tokens=max_tokens)
    step = world.step(bonus, tree=tree, accepted=3)
    assert (step.outcome.token_ids, step.outcome.finish) == (tokens, reason)
    assert step.outcome.accepted == min(3, len(tokens))
    assert step.outcome.receipt is not None
    assert step.outcome.receipt.committed_tokens == len(tokens)
    assert (step.verdict.finished, step.verdict.draft_budget) == (True, 0)
    assert len(world.table) == 0
    assert world.allocator.free == world.allocator.total


def test_a_session_without_a_drafter_speaks_to_none() -> None:
    step = World(stream_id=0).step(5, tree=TokenTree())
    assert (step.stream_id, step.verdict.draft_budget) == (0, 0)


def test_a_drafter_that_missed_verdicts_is_told_the_rest_and_gets_no_feedback() -> None:
    world = World()
    world.session.drafting.told_length = 2
    step = world.step(5, top_k=1)
    assert (step.verdict.base_length, step.verdict.committed) == (2, (3, 5))
    assert step.verdict.feedback is None
    told = world.step(6, top_k=1)
    assert (told.verdict.base_length, told.verdict.committed) == (4, (6,))
    assert told.verdict.feedback is not None


def test_a_session_that_cannot_take_its_step_is_named_and_the_others_get_theirs() -> None:
    world = World()
    # No blocks to keep the text in: accounting fails for it alone.
    broken = Session(
        SessionKey("broken", 1), 3, [1, 2, 3], SamplingParams(max_tokens=9), 12, drafting=Drafting()
    )
    broken.token_ids = None  # type: ignore[assignment]
    world.table.add(broken)
    rows = [
        PlannedRows(each, Segment([1, 2, 3], 0, (0,)), TokenTree(), False) for each in (broken, world.session)
    ]
    with world.table.lock:
        steps, faults = world.progress.apply(Computed(rows, [(row, _decision((), 5, 0)) for row in rows]))
    assert [fault.session for fault in faults] == [broken]
    assert [step.key.session_id for step in steps] == ["s"]


def test_retiring_twice_frees_once_and_the_first_reason_stays() -> None:
    world = World()
    with world.table.lock:
        world.progress.retire(world.session, FinishReason.STOP)
        world.progress.retire(world.session, FinishReason.CANCELLED)
    assert world.session.finish_reason is FinishReason.STOP
    assert world.allocator.free == world.allocator.total


def test_a_step_without_the_tree_that_it_wanted_counts_as_missing_one() -> None:
    world = World(stream_id=0)
    # The first step follows the prompt, when nobody was asked yet.
    world.step(5, tree=TokenTree())
    assert world.progress.load.wanted_trees == 0
    world.step(5, tree=TokenTree())
    world.step(5, accepted=1)
    assert (world.progress.load.wanted_trees, world.progress.load.missing_trees) == (2, 1)


def test_a_plain_session_and_the_last_token_want_no_tree() -> None:
    plain, last = World(stream_id=0), World(max_tokens=2)
    plain.session.plain = True
    for world in (plain, last):
        world.step(5, tree=TokenTree())
        world.step(5, tree=TokenTree())
        assert world.progress.load.wanted_trees == 0
