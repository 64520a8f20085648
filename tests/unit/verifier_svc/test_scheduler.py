"""Plans under load: rows stay within budget, the oldest gets on, no block is held twice or lost."""

from __future__ import annotations

from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.engine.blocks import BlockAllocator
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from verifier_svc.budget import DraftBudget
from verifier_svc.cost import EDGES, StepCost
from verifier_svc.scheduler import Plan, StepLimits, plan
from verifier_svc.sessions import Session

LIMITS = StepLimits(block_size=8, prefill_rows=12, max_tree_nodes=4)
DRAFT_ROWS = 10
CHAIN = TokenTree((7, 7, 7, 7), (-1, 0, 1, 2), (-0.1,) * 4)
NUMBERS = count()


def _session(prompt: int, max_tokens: int, committed: int = 0) -> Session:
    return Session(
        key=SessionKey(f"s{next(NUMBERS)}", 1),
        prompt_length=prompt,
        token_ids=[1] * prompt + [7] * committed,
        sampling=SamplingParams(max_tokens=max_tokens),
        length_limit=prompt + max_tokens,
    )


def _came(session: Session, tree: TokenTree, base: int | None = None) -> None:
    session.drafting.came(tree, session.length if base is None else base, now=0.0)


def _budget() -> DraftBudget:
    """Rows cost nothing: as many nodes as fit."""
    return DraftBudget(StepCost({1: 1.0, 256: 1.0}, 0.0), draft_rows=DRAFT_ROWS, max_nodes=4)


def _apply(planned: Plan, allocator: BlockAllocator, sessions: list[Session], accepted: int) -> None:
    """What the step loop does with a plan, where the target always says 7."""
    for row in planned.rows:
        session, segment = row.session, row.segment
        session.num_computed = segment.root_index + 1
        if not segment.wants_logits:
            continue
        path = min(accepted, max(row.tree.depths(), default=0))
        session.num_computed += path
        tokens = [7] * min(path + 1, session.length_limit - session.length)
        session.token_ids += tokens
        if session.length >= session.length_limit:
            allocator.keep(session.blocks, session.token_ids, session.num_computed)
            allocator.release(session.blocks)
            sessions.remove(session)


def _check(planned: Plan, allocator: BlockAllocator, sessions: list[Session]) -> None:
    held = {block for session in sessions for block in session.blocks}
    assert len(held) + allocator.free == allocator.total
    decoding = [row for row in planned.rows if row.session.decoding]
    computing = [row for row in planned.rows if not row.session.decoding]
    assert sum(row.segment.num_rows for row in computing) <= LIMITS.prefill_rows
    assert sum(row.segment.num_rows for row in decoding) <= max(DRAFT_ROWS, len(decoding))
    for row in planned.rows:
        segment = row.segment
        assert row.session not in planned.preempted
        assert segment.start == row.session.num_computed
        assert len(segment.run) > 0
        # A slot for every row, the tree's included.
        assert segment.start + segment.num_rows <= len(segment.blocks) * LIMITS.block_size
        assert segment.blocks == tuple(row.session.blocks)
        assert segment.wants_logits == (segment.start + len(segment.run) == row.session.length)
        assert row.tree.tokens == () or segment.wants_logits
    for session in planned.preempted:
        assert session.blocks == []
        assert (session.num_computed, session.drafting.offers) == (0, ())


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_all_sessions_finish_in_bounded_steps_under_kv_pressure(data: st.DataObject) -> None:
    shapes = st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(0, 10))
    waiting = [
        _session(prompt, committed + more, committed)
        for prompt, more, committed in data.draw(st.lists(shapes, min_size=1, max_size=6))
    ]
    # The longest session may fill the pool to its last slot.
    least = -(-max(session.length_limit for session in waiting) // LIMITS.block_size)
    allocator = BlockAllocator(data.draw(st.integers(least, 3 * least)), LIMITS.block_size)
    sessions: list[Session] = []
    while sessions or waiting:
        if waiting and (not sessions or data.draw(st.booleans())):
            sessions.append(waiting.pop(0))
        for session in sessions:
            if session.decoding and data.draw(st.booleans()):
                _came(session, CHAIN)
        oldest = sessions[0]
        planned = plan(sessions, allocator, LIMITS, _budget())
        _check(planned, allocator, sessions)
        # The oldest is never the one that waits or gives up its KV: so all get their turn.
        assert oldest in [row.session for row in planned.rows]
        _apply(planned, allocator, sessions, accepted=data.draw(st.integers(0, 4)))
    assert allocator.free == allocator.total


def test_a_newcomer_takes_no_block_from_an_older_session() -> None:
    allocator = BlockAllocator(2, LIMITS.block_size)
    older, newcomer = _session(10, 2), _session(10, 2)
    first = plan([older], allocator, LIMITS, _budget())
    _apply(first, allocator, [older], accepted=0)
    planned = plan([older, newcomer], allocator, LIMITS, _budget())
    assert [row.session for row in planned.rows] == [older]
    assert planned.preempted == []


def test_the_youngest_gives_way_to_an_older_one() -> None:
    allocator = BlockAllocator(5, LIMITS.block_size)
    sessions = [_session(8, 30), _session(8, 30)]
    preempted: list[Session] = []
    for _ in range(20):
        planned = plan(sessions, allocator, LIMITS, _budget())
        _check(planned, allocator, sessions)
        preempted += planned.preempted
        _apply(planned, allocator, sessions, accepted=0)
    assert set(map(id, preempted)) == {id(sessions[1])}


def test_prompts_share_the_prefill_rows_oldest_first() -> None:
    allocator = BlockAllocator(20, LIMITS.block_size)
    sessions = [_session(8, 4), _session(8, 4), _session(8, 4)]
    rows = plan(sessions, allocator, LIMITS, _budget()).rows
    assert [(row.session, len(row.segment.run)) for row in rows] == [(sessions[0], 8), (sessions[1], 4)]


def test_where_many_prompts_wait_they_get_more_rows_of_a_step() -> None:
    limits = StepLimits(block_size=8, prefill_rows=256, max_tree_nodes=4)

    def rows_beside_one_that_decodes(prompts: int) -> int:
        budget = DraftBudget(
            StepCost({edge: 1.0 + edge / 64 for edge in EDGES}, 0.0), draft_rows=8, max_nodes=4
        )
        allocator = BlockAllocator(400, limits.block_size)
        first = _session(3, 9, 1)
        _apply(plan([first], allocator, limits, budget), allocator, [first], accepted=0)
        rows = plan([first, *(_session(200, 4) for _ in range(prompts))], allocator, limits, budget).rows
        return sum(len(row.segment.run) for row in rows if row.session is not first)

    assert rows_beside_one_that_decodes(1) < rows_beside_one_that_decodes(2) < rows_beside_one_that_decodes(9)


def test_the_rows_of_a_prompt_follow_what_the_step_reads_of_keys() -> None:
    limits = StepLimits(block_size=8, prefill_rows=256, max_tree_nodes=4)

    def prompt_rows(*, decoding: int, computed: int) -> int:
        """Beside a session of so many ids, of a prompt of which so many are computed."""
        cost = StepCost({edge: 1.0 + edge / 64 for edge in EDGES}, per_block=0.05, per_row_and_block=0.001)
        budget = DraftBudget(cost, draft_rows=8, max_nodes=4)
        allocator = BlockAllocator(400, limits.block_size)
        first, prompt = _session(decoding, 9, 1), _session(1000, 4)
        for session, positions in ((first, decoding), (prompt, computed)):
            allocator.extend(session.blocks, -(-positions // limits.block_size))
            session.num_computed = positions
        rows = plan([first, prompt], allocator, limits, budget).rows
        return sum(len(row.segment.run) for row in rows if row.session is prompt)

    assert prompt_rows(decoding=3, computed=400) < prompt_rows(decoding=3, computed=0)
    # A step that is long already may be stretched by more.
    assert prompt_rows(decoding=3, computed=0) < prompt_rows(decoding=300, computed=0)


def test_decoding_sessions_share_the_draft_rows() -> None:
    allocator = BlockAllocator(20, LIMITS.block_size)
    sessions = [_session(3, 9, 1) for _ in range(3)]
    _apply(plan(sessions, allocator, LIMITS, _budget()), allocator, sessions, accepted=0)
    for session in sessions:
        _came(session, CHAIN)
    rows = plan(sessions, allocator, LIMITS, _budget()).rows
    # 10 rows among 3 sessions: three roots and seven nodes.
    assert sorted(len(row.tree) for row in rows) == [2, 2, 3]


def test_late_trees_are_counted() -> None:
    allocator = BlockAllocator(20, LIMITS.block_size)
    sessions = [_session(3, 9, 1)]
    _apply(plan(sessions, allocator, LIMITS, _budget()), allocator, sessions, accepted=0)
    _came(sessions[0], TokenTree((8,), (-1,), (-0.1,)), base=3)
    assert plan(sessions, allocator, LIMITS, _budget()).late_trees == 1
