"""Which session or tree makes a step fail: it ends that session at most, and the others go on.

A step that fails is repeated without trees, then one session at a time. Where a tree is to blame, its drafter
is named. Nothing here costs anything where nothing fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from paceline.engine.blocks import BlockTask
from paceline.engine.verify import Decision
from paceline.service import telemetry
from paceline.tree import TokenTree
from verifier_svc.offers import Offer
from verifier_svc.scheduler import Plan, PlannedRows
from verifier_svc.sessions import Session

log = telemetry.logger(__name__)

# Rows that drew, with their decisions.
Drawn: TypeAlias = list[tuple[PlannedRows, Decision]]


@dataclass(frozen=True, slots=True)
class SessionFault:
    """A session that cannot be planned or computed, not even alone."""

    session: Session
    error: Exception


@dataclass(slots=True)
class Computed:
    """A computed step: its rows, their decisions, and the sessions that failed."""

    rows: list[PlannedRows]
    drawn: Drawn
    faults: list[SessionFault] = field(default_factory=list)
    # Drafter streams whose trees made the step fail.
    harmful: list[int] = field(default_factory=list)
    # Whether it was computed as it was planned, with its trees.
    as_planned: bool = True


@dataclass(slots=True)
class Planned:
    """A step's plan; the sessions that cannot be planned; drafter streams whose trees could not be."""

    plan: Plan
    faults: list[SessionFault] = field(default_factory=list)
    harmful: list[int] = field(default_factory=list)


def plan_apart(
    sessions: Sequence[Session],
    plan: Callable[[Sequence[Session]], Plan],
    plan_tree: Callable[[Session], None],
) -> Planned:
    """A plan for all sessions that can be planned; call with the table's lock held.

    `plan_tree` plans one session's waiting trees and nothing else. Raises what `plan` raises for the sessions
    that can be planned alone: then no session in particular is to blame.
    """
    waiting = [(session, session.drafting.offers) for session in sessions if session.drafting.offers]
    try:
        return Planned(plan(sessions))
    except Exception as error:
        log.warning("a step cannot be planned; once more without trees", error=type(error).__name__)
    harmful = [
        session.drafting.stream_id for session, trees in waiting if _is_harmful(session, trees, plan_tree)
    ]
    for session in sessions:
        session.drafting.drop_trees()
    try:
        return Planned(plan(sessions), harmful=harmful)
    except Exception as error:
        log.warning("a step cannot be planned; session by session", error=type(error).__name__)
    faults: list[SessionFault] = []
    # A plan that is not carried out has taken blocks for its sessions all the same.
    block_tasks: list[BlockTask] = []
    for session in sessions:
        try:
            block_tasks += plan([session]).block_tasks
        except Exception as error:
            faults.append(SessionFault(session, error))
    failed = [fault.session for fault in faults]
    planned = plan([session for session in sessions if session not in failed])
    return Planned(replace(planned, block_tasks=[*block_tasks, *planned.block_tasks]), faults, harmful)


def _is_harmful(session: Session, trees: tuple[Offer, ...], plan_tree: Callable[[Session], None]) -> bool:
    session.drafting.offers = trees
    try:
        plan_tree(session)
    except Exception:
        return True
    return False


def compute_apart(
    rows: Sequence[PlannedRows],
    compute: Callable[[Sequence[PlannedRows]], Drawn],
    engine_is_sound: Callable[[], bool],
    *,
    repeatable: bool = True,
) -> Computed:
    """Compute a step's rows. Where that fails: without trees, then session by session.

    A session is at fault if it fails alone while the engine still computes something else. Memory that is too
    short for a large tree or for many sessions at once is found in the same way. Raises what `compute` raised
    where the engine computes nothing any more, or is not `repeatable`: with several ranks, the others may
    still be in the step that failed.
    """
    try:
        return Computed(list(rows), compute(rows))
    except Exception as error:
        if not repeatable:
            raise
        log.warning("a step failed; once more without trees", error=type(error).__name__)
    plain = [
        replace(
            row,
            segment=replace(row.segment, tree_tokens=(), tree_parents=()),
            tree=TokenTree(),
            nodes=(),
            offered=False,
        )
        for row in rows
    ]
    try:
        drawn = compute(plain)
    except Exception as error:
        log.warning("a step failed; session by session", error=type(error).__name__)
    else:
        return Computed(plain, drawn, harmful=_harmful(rows, compute), as_planned=False)
    computed = Computed([], [], as_planned=False)
    for row in plain:
        try:
            computed.drawn += compute([row])
        except Exception as error:
            computed.faults.append(SessionFault(row.session, error))
        else:
            computed.rows.append(row)
    if computed.faults and not computed.rows and not engine_is_sound():
        raise computed.faults[0].error
    return computed


def _harmful(rows: Sequence[PlannedRows], compute: Callable[[Sequence[PlannedRows]], Drawn]) -> list[int]:
    """The stream of a tree with which `compute` fails, even alone; found by halving.

    Computing rows again changes nothing: their decisions are thrown away, and KV beyond a session's computed
    positions is never read.
    """
    suspects = [row for row in rows if row.tree.tokens]
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        suspects = half if _fails(half, compute) else suspects[len(half) :]
    return [row.stream_id for row in suspects if _fails([row], compute)]


def _fails(rows: Sequence[PlannedRows], compute: Callable[[Sequence[PlannedRows]], Drawn]) -> bool:
    try:
        compute(rows)
    except Exception:
        return True
    return False


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Log what the block raises, and go on: for what no session depends on, such as learning."""
    try:
        yield
    except Exception:
        log.exception("failed, and left at that", what=what)
