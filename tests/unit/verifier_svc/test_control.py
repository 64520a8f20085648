"""How many nodes drafters are asked for, and when a step waits for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from verifier_svc.control import DraftControl, Waited
from verifier_svc.cost import StepCost
from verifier_svc.drafting import Drafting
from verifier_svc.sessions import Session, SessionTable

NODES = 8
TREE = TokenTree((7,), (-1,), (-0.1,))


@pytest.fixture
def table() -> SessionTable:
    return SessionTable(4)


@pytest.fixture
def session(table: SessionTable) -> Session:
    made = Session(
        key=SessionKey("s", 1),
        prompt_length=3,
        token_ids=[1, 2, 3, 4],
        sampling=SamplingParams(max_tokens=9),
        length_limit=12,
        num_computed=3,
        drafting=Drafting(stream_id=1),
    )
    # A tree came beside the join.
    made.drafting.came(TREE, made.length, now=0.0)
    made.drafting.drop_trees()
    table.add(made)
    return made


def control(table: SessionTable, *, max_wait_seconds: float = 30.0) -> DraftControl:
    return DraftControl(table, draft_rows=16, max_tree_nodes=NODES, max_wait_seconds=max_wait_seconds)


def test_the_last_token_is_the_targets_and_no_tree_is_asked_for_it(
    table: SessionTable, session: Session
) -> None:
    made = control(table)
    assert made.nodes_for(session) == NODES
    session.token_ids = [1] * (session.length_limit - 1)
    assert made.nodes_for(session) == 0


def test_where_drafts_do_not_pay_a_session_is_asked_now_and_then(
    table: SessionTable, session: Session
) -> None:
    made = control(table)
    # Each row more takes as long as the first.
    made.budget.cost = StepCost({edge: float(edge) for edge in (1, 2, 4, 8, 16)}, 0.0)
    made.ask([session])
    assert made.nodes_asked == 0
    asked = []
    for session.steps in range(100):
        asked.append(made.nodes_for(session) > 0)
    assert 0 < asked.count(True) < 100


class Waits:
    """In the place of the lock's `wait`: notes that it is called, and what happens meanwhile happens."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.count = 0
        self._meanwhile = meanwhile

    def __call__(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert timeout > 0
        self.count += 1
        self._meanwhile()
        return True


def test_a_step_waits_until_the_tree_comes(
    table: SessionTable, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = control(table)
    waits = Waits(lambda: made.came(session, session.length, TREE))
    monkeypatch.setattr(table.lock, "wait", waits)
    with table.lock:
        made.stepped(session, nodes=NODES)
        waited = made.await_trees(lambda: False)
    assert waits.count == 1
    assert waited.seconds > 0
    assert 0 <= waited.session_seconds <= waited.seconds
    assert [offer.tree for offer in session.drafting.offers] == [TREE]


def test_a_step_does_not_wait_where_a_tree_that_was_pushed_fits(
    table: SessionTable, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = control(table)
    waits = Waits()
    monkeypatch.setattr(table.lock, "wait", waits)
    with table.lock:
        made.stepped(session, nodes=NODES)
        # On a shorter text: it came while the step ran, and goes on as the text did.
        pushed = TokenTree((4, 5, 6, 7), (-1, 0, 1, 2), (-0.01,) * 4)
        made.came(session, 3, pushed)
        assert made.await_trees(lambda: False) == Waited()
        assert waits.count == 0
        session.drafting.drop_trees()
        made.came(session, 3, TokenTree((9, 5, 6, 7), (-1, 0, 1, 2), (-0.01,) * 4))
        made.await_trees(lambda: waits.count == 1)
    assert waits.count == 1, "one that does not fit holds nobody back from waiting"


def test_a_step_starts_as_soon_as_what_came_meanwhile_is_enough(
    table: SessionTable, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = control(table)
    pushed = TokenTree((4, 5, 6, 7), (-1, 0, 1, 2), (-0.01,) * 4)
    waits = Waits(lambda: made.came(session, 3, pushed))
    monkeypatch.setattr(table.lock, "wait", waits)
    with table.lock:
        made.stepped(session, nodes=NODES)
        made.await_trees(lambda: waits.count == 2)
    assert waits.count == 1


def test_nobody_waits_where_no_tree_was_asked_for_or_waiting_is_off(
    table: SessionTable, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits()
    monkeypatch.setattr(table.lock, "wait", waits)
    for made, nodes in ((control(table), 0), (control(table, max_wait_seconds=0.0), NODES)):
        with table.lock:
            made.stepped(session, nodes=nodes)
            # Exactly: an idle verifier whose every round counted a little would seem to do nothing but wait.
            assert made.await_trees(lambda: False) == Waited()
    assert waits.count == 0


def test_a_loop_that_stops_does_not_wait_on(
    table: SessionTable, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = control(table)
    waits = Waits()
    monkeypatch.setattr(table.lock, "wait", waits)
    with table.lock:
        made.stepped(session, nodes=NODES)
        made.await_trees(lambda: waits.count == 1)
    assert waits.count == 1
