"""Plan a step: each decoding session's row and tree, then prompt rows within a budget of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline.engine.blocks import BlockAllocator, BlockTask, OutOfBlocksError
from paceline.engine.rows import Segment
from paceline.tree import TokenTree
from verifier_svc.budget import PROBE_STEPS, DraftBudget
from verifier_svc.merge import Node
from verifier_svc.prompt_scores import SCORED_ROWS
from verifier_svc.readiness import ready
from verifier_svc.sessions import Session
from verifier_svc.sources import GRAMMAR


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """What one session contributes to a step."""

    session: Session
    segment: Segment
    tree: TokenTree
    # Whether a tree had come since the last step to take nodes of, though maybe none was taken.
    offered: bool
    # The drafter stream that the tree came from, 0 for none, and the names of its sources.
    stream_id: int = 0
    sources: tuple[str, ...] = ()
    # Who proposed each of the tree's nodes, and the sources whose trees knew all of the text.
    nodes: tuple[Node, ...] = ()
    in_time: frozenset[int] = frozenset()

    @property
    def of_decoding(self) -> bool:
        """Whether the session decodes: one row and its tree, with logits."""
        return self.segment.wants_logits and len(self.segment.run) == 1


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: the rows of each session, the sessions that gave up their KV, the number of late trees."""

    rows: list[PlannedRows]
    preempted: list[Session]
    late_trees: int
    # For `KVPool.prepare`.
    block_tasks: list[BlockTask]
    # Positions of sessions that begin in this step, and how many of them have KV in kept texts.
    queried_tokens: int
    found_tokens: int


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Row limits of a step; see `VerifierSettings`."""

    block_size: int
    prefill_rows: int
    max_tree_nodes: int


def plan(
    sessions: Sequence[Session], allocator: BlockAllocator, limits: StepLimits, budget: DraftBudget
) -> Plan:
    """Choose the rows of the next step; `sessions` come oldest first.

    Decoding sessions take part in every step, with as many tree nodes as `budget` allots. Rows of
    prompts, and of committed ids that a resumed session has to compute anew, fill what `prefill_rows`
    leaves, oldest session first. When KV blocks run out, the youngest session gives its blocks up and is
    recomputed from its tokens later. The oldest session always makes progress, so no session waits for ever.
    """
    taking_part: list[tuple[Session, int]] = []
    preempted: list[Session] = []
    queried = found = 0
    prefill_left = _prompt_rows(sessions, limits, budget)
    for session in sessions:
        if session in preempted:
            continue
        if not session.blocks:
            session.num_computed = allocator.adopt(session.blocks, _adoptable(session))
            queried += session.length
            found += session.num_computed
        run_stop = session.length
        if not session.decoding:
            run_stop = min(run_stop, session.num_computed + min(prefill_left, _most_rows(session)))
        if run_stop == session.num_computed:
            continue
        if not _make_room(session, run_stop, sessions, allocator, limits, preempted):
            continue
        if not session.decoding:
            prefill_left -= run_stop - session.num_computed
        taking_part.append((session, run_stop))
    taken, late = _take([session for session, _ in taking_part if session.decoding], limits, budget)
    rows = [
        _rows(session, run_stop, taken.get(session.key.session_id, _Taken()))
        for session, run_stop in taking_part
    ]
    return Plan(rows, preempted, late, allocator.take_tasks(), queried, found)


def plan_tree(session: Session, limits: StepLimits, budget: DraftBudget) -> None:
    """Plan the session's waiting tree alone, to see whether that raises; uses the tree up."""
    if session.decoding:
        _take([session], limits, budget)


def _prompt_rows(sessions: Sequence[Session], limits: StepLimits, budget: DraftBudget) -> int:
    decoding = [session for session in sessions if session.decoding]
    computing = [session for session in sessions if not session.decoding]
    if not computing:
        return 0
    return budget.prompt_rows(
        len(decoding),
        blocks=sum(len(session.blocks) for session in decoding),
        prompts=len(computing),
        prompt_blocks=computing[0].num_computed // limits.block_size,
        most=limits.prefill_rows,
    )


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a session's step verifies of its trees; the other fields as in `PlannedRows`."""

    tree: TokenTree = field(default_factory=TokenTree)
    nodes: tuple[Node, ...] = ()
    offered: bool = False
    in_time: frozenset[int] = frozenset()


def _take(
    decoding: Sequence[Session], limits: StepLimits, budget: DraftBudget
) -> tuple[dict[str, _Taken], int]:
    """What each session verifies, by its id; and the number of late trees."""
    waiting = [ready(session, budget) for session in decoding]
    trees = [
        each.tree if _slots_for_nodes(session, limits) else TokenTree()
        for session, each in zip(decoding, waiting, strict=True)
    ]
    counts = budget.allot(
        trees,
        blocks=sum(len(session.blocks) for session in decoding),
        probing=[session.steps % PROBE_STEPS == 0 for session in decoding],
        remnant=[not each.in_time for each in waiting],
    )
    taken: dict[str, _Taken] = {}
    for session, each, tree, count in zip(decoding, waiting, trees, counts, strict=True):
        most = min(count, _slots_for_nodes(session, limits), limits.max_tree_nodes)
        nodes = tree.best_nodes(most)
        taken[session.key.session_id] = _Taken(
            tree.select(nodes),
            tuple(each.merged.nodes[node] for node in nodes),
            each.fresh and bool(tree.tokens),
            each.in_time,
        )
        session.drafting.take(each.fitting)
    return taken, sum(each.late for each in waiting)


def _rows(session: Session, run_stop: int, taken: _Taken) -> PlannedRows:
    return PlannedRows(
        session,
        _segment(session, run_stop, taken.tree),
        taken.tree,
        taken.offered,
        session.drafting.stream_id,
        (*session.drafting.sources, GRAMMAR),
        taken.nodes,
        taken.in_time,
    )


def _slots_for_nodes(session: Session, limits: StepLimits) -> int:
    """Slots behind the root; fewer than a tree may have nodes only at the end of a full pool."""
    return len(session.blocks) * limits.block_size - session.length


def _adoptable(session: Session) -> Sequence[int]:
    """The text whose KV may be another session's: a prompt's rows are computed for their scores."""
    scores = session.prompt_scores
    if scores is None or scores.complete:
        return session.token_ids
    return session.token_ids[: scores.adoptable + 1]


def _most_rows(session: Session) -> int:
    scores = session.prompt_scores
    return session.length if scores is None or scores.complete else SCORED_ROWS


def _segment(session: Session, run_stop: int, tree: TokenTree) -> Segment:
    scores = session.prompt_scores
    return Segment(
        run=session.token_ids[session.num_computed : run_stop],
        start=session.num_computed,
        blocks=tuple(session.blocks),
        tree_tokens=tree.tokens,
        tree_parents=tree.parents,
        wants_logits=run_stop == session.length,
        scored=range(0) if scores is None else scores.rows(session.num_computed, run_stop),
    )


def _make_room(
    session: Session,
    run_stop: int,
    sessions: Sequence[Session],
    allocator: BlockAllocator,
    limits: StepLimits,
    preempted: list[Session],
) -> bool:
    """Give `session` blocks up to `run_stop` and for a tree after it; False when it must wait."""
    wanted = min(-(-(run_stop + limits.max_tree_nodes) // limits.block_size), allocator.total)
    while True:
        try:
            allocator.extend(session.blocks, wanted)
        except OutOfBlocksError:
            # Only a younger session gives way: two that took each other's blocks would never finish.
            youngest = next(other for other in reversed(sessions) if other.blocks or other is session)
            if youngest is session:
                return False
            allocator.keep(youngest.blocks, youngest.token_ids, youngest.num_computed, youngest.text_root)
            allocator.release(youngest.blocks)
            youngest.num_computed = 0
            youngest.drafting.drop_trees()
            preempted.append(youngest)
        else:
            return True
