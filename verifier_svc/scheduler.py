"""The next batch: every decoding session's row and tree, then prompt rows under their own budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.engine.blocks import BlockAllocator, BlockTask, OutOfBlocksError
from paceline.engine.rows import Segment, tree_room
from paceline.tree import TokenTree
from verifier_svc import budget, inbox
from verifier_svc.sessions import Session


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """What one session contributes to a step."""

    session: Session
    segment: Segment
    tree: TokenTree


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: who takes part with what, who had to give up its KV, how many late trees fell out."""

    rows: list[PlannedRows]
    preempted: list[Session]
    late_trees: int
    # For `KVPool.prepare`.
    block_tasks: list[BlockTask]
    # Positions of sessions that began, and how many of them were found in kept texts.
    queried_tokens: int
    found_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Row limits of a step; see `VerifierSettings`."""

    block_size: int
    prefill_rows: int
    draft_rows: int
    max_tree_nodes: int


def plan(sessions: Sequence[Session], allocator: BlockAllocator, limits: Limits) -> Plan:
    """Choose the rows of the next step; `sessions` come oldest first.

    Decoding sessions take part in every step. Rows of prompts, and of committed ids that a resumed
    session has to compute anew, fill what `prefill_rows` leaves, oldest session first. When KV blocks
    run out the youngest session gives its own up and starts over from its tokens later (recompute):
    the oldest always gets on, so nothing can stand still for ever.
    """
    rows: list[PlannedRows] = []
    preempted: list[Session] = []
    late = queried = found = 0
    decoding = sum(session.decoding for session in sessions)
    nodes = budget.nodes_per_session(decoding, draft_rows=limits.draft_rows, max_nodes=limits.max_tree_nodes)
    prefill_left = limits.prefill_rows
    for session in sessions:
        if session in preempted:
            continue
        if not session.blocks:
            session.num_computed = allocator.adopt(session.blocks, session.token_ids)
            queried += session.length
            found += session.num_computed
        run_stop = _run_stop(session, limits, prefill_left)
        if run_stop == session.num_computed:
            continue
        if not _make_room(session, run_stop, sessions, allocator, limits, preempted):
            continue
        tree = TokenTree()
        if session.decoding:
            # At the very end of a full pool there may be fewer slots behind the root than nodes.
            spare = len(session.blocks) * limits.block_size - run_stop
            room = tree_room(run_stop - 1, limits.block_size)
            tree, dropped = inbox.take(session, min(nodes, spare, room))
            late += dropped
        else:
            prefill_left -= run_stop - session.num_computed
        segment = Segment(
            run=session.token_ids[session.num_computed : run_stop],
            start=session.num_computed,
            blocks=tuple(session.blocks),
            tree_tokens=tree.tokens,
            tree_parents=tree.parents,
            wants_logits=run_stop == session.length,
        )
        rows.append(PlannedRows(session, segment, tree))
    return Plan(rows, preempted, late, allocator.take_tasks(), queried, found)


def _run_stop(session: Session, limits: Limits, prefill_left: int) -> int:
    """Where the session's run of rows ends in this step."""
    if session.decoding:
        return session.length
    return min(session.length, session.num_computed + prefill_left)


def _make_room(
    session: Session,
    run_stop: int,
    sessions: Sequence[Session],
    allocator: BlockAllocator,
    limits: Limits,
    preempted: list[Session],
) -> bool:
    """Give `session` blocks up to `run_stop` and for a tree behind it; False when it must wait."""
    wanted = min(-(-(run_stop + limits.max_tree_nodes) // limits.block_size), allocator.total)
    while True:
        try:
            allocator.extend(session.blocks, wanted)
        except OutOfBlocksError:
            # Only a younger session gives way: two that took each other's blocks would never finish.
            youngest = next(other for other in reversed(sessions) if other.blocks or other is session)
            if youngest is session:
                return False
            allocator.keep(youngest.blocks, youngest.token_ids, youngest.num_computed)
            allocator.release(youngest.blocks)
            youngest.num_computed = 0
            youngest.tree = None
            preempted.append(youngest)
        else:
            return True
