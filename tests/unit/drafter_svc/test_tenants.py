"""One tenant's sessions teach no other's: laws over any traffic, and what bounds the memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drafter_svc import methods
from drafter_svc.hypothesis import Hypothesis, Lesson, Row
from drafter_svc.methods.base import Ask, TeachableMethod
from drafter_svc.methods.recycling import Recycling, Room
from drafter_svc.rounds import TreeLimits
from drafter_svc.tenants import Tenants
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Feedback, Verdict
from tests.drafting import DrivenRounds

VOCAB = 12
METHOD = "lookup+recycling"
LIMITS = TreeLimits(vocab_size=VOCAB, nodes=24, depth=6)
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)


@dataclass(frozen=True)
class Asked:
    """A session: its prompt, the text that the target goes on with, and the target's best next ids."""

    prompt: list[int]
    text: list[int]
    top: list[int]
    temperature: float


ASKED = st.builds(
    Asked, IDS, IDS, st.permutations(range(VOCAB)).map(lambda ids: ids[:4]), st.sampled_from([0.0, 0.8])
)


def tables() -> TeachableMethod:
    """A method that begins with tables, as a drafter's does."""
    taught = methods.create(METHOD, VOCAB)
    known = Hypothesis(SessionKey("taught", 1), SamplingParams(max_tokens=9), [1, 2, 3, 4, 5])
    rows = tuple(Row((token,), ((token + 1) % VOCAB,), 4) for token in range(4))
    taught.learn(known, Lesson(4, (5,), rows))
    method = methods.create(METHOD, VOCAB)
    method.restore(taught.tables())
    return method


def play(rounds: DrivenRounds, asked: Asked, session_id: str, tenant: str) -> list[TokenTree]:
    """Every tree that a session is drafted, from its first to its last."""
    sampling = SamplingParams(max_tokens=99, temperature=asked.temperature)
    hypothesis = Hypothesis(SessionKey(session_id, 1), sampling, asked.prompt, tenant)
    drafted = rounds.attach(hypothesis)
    trees: list[TokenTree] = []
    rest = asked.text
    while rest:
        tree = drafted.trees[0][2] if drafted.trees else TokenTree()
        trees.append(tree)
        node, accepted = -1, 0
        while accepted < len(rest) - 1 and (child := tree.child(node, rest[accepted])) is not None:
            node, accepted = child, accepted + 1
        feedback = Feedback.of(hypothesis.ids[-1], tree, tuple(asked.top) * (len(tree) + 1), len(asked.top))
        committed, rest = tuple(rest[: accepted + 1]), rest[accepted + 1 :]
        verdict = Verdict(
            hypothesis.key,
            hypothesis.base_length,
            committed,
            accepted=accepted,
            drafted=len(tree),
            draft_budget=24,
            feedback=feedback,
            finished=not rest,
        )
        drafted = rounds.verdicts([verdict])
    return trees


def fresh_rounds(first: TeachableMethod | None = None, most: int = 4) -> DrivenRounds:
    rounds = DrivenRounds(Tenants(first or tables(), most), LIMITS)
    rounds.welcome()
    return rounds


@settings(deadline=None)
@given(
    before=st.lists(st.tuples(st.sampled_from("ac"), ASKED), max_size=6),
    own=st.lists(ASKED, min_size=1, max_size=3),
    again=st.booleans(),
)
def test_a_tenants_trees_do_not_depend_on_what_others_asked(
    before: list[tuple[str, Asked]], own: list[Asked], again: bool
) -> None:
    if again:
        before = [*before, *(("a", asked) for asked in own)]
    alone, beside = fresh_rounds(), fresh_rounds()
    for number, (tenant, asked) in enumerate(before):
        play(beside, asked, f"other-{number}", tenant)
    for number, asked in enumerate(own):
        session_id = f"own-{number}"
        assert play(beside, asked, session_id, "b") == play(alone, asked, session_id, "b")


@settings(deadline=None)
@given(before=st.lists(ASKED, max_size=4), asked=ASKED)
def test_a_tenant_begins_as_the_tables_say_however_long_others_have_been_there(
    before: list[Asked], asked: Asked
) -> None:
    untaught, first = tables(), tables()
    known = fresh_rounds(first)
    for number, other in enumerate(before):
        play(known, other, f"other-{number}", "a")
    assert play(known, asked, "s", "new") == play(fresh_rounds(untaught), asked, "s", "new")
    assert all((first.tables()[name] == table).all() for name, table in untaught.tables().items())


ONCE = Asked([1, 2], [9, 4, 11, 6, 0, 8, 3, 10, 5], [7, 1, 2, 3], 0.0)


@pytest.mark.parametrize(("tenant", "knows"), [("a", True), ("b", False)])
def test_what_a_tenant_asked_helps_it_and_nobody_else(tenant: str, knows: bool) -> None:
    """The text itself shows in the trees: the second time most of it is drafted."""
    rounds = fresh_rounds(methods.create(METHOD, 64))
    teaching = Asked(ONCE.prompt, ONCE.text, [9], 0.0)
    first = play(rounds, teaching, "first", "a")
    later = play(rounds, teaching, "second", tenant)
    assert (len(later[0]) > 0) == knows
    assert (later == first) != knows


def test_a_tenant_is_kept_behind_its_sessions_and_the_one_longest_away_goes() -> None:
    rounds = fresh_rounds(methods.create(METHOD, VOCAB), most=2)
    alone = play(fresh_rounds(methods.create(METHOD, VOCAB)), ONCE, "s", "a")
    for tenant in ("a", "b", "a", "c"):
        play(rounds, ONCE, f"first-{tenant}", tenant)
    assert play(rounds, ONCE, "again", "a") != alone
    assert play(rounds, ONCE, "again", "b") == alone


def ask(session_id: str, tenant: str) -> Ask:
    sampling = SamplingParams(max_tokens=9)
    return Ask(Hypothesis(SessionKey(session_id, 1), sampling, [1, 2], tenant), 2, 8, 4)


def test_a_tenant_that_has_a_session_is_never_dropped() -> None:
    tenants = Tenants(methods.create(METHOD, VOCAB), most=0)
    tenants.draft([ask("a1", "a"), ask("a2", "a"), ask("b1", "b")])
    assert len(tenants) == 2
    taught = ask("a1", "a").session
    tenants.observe(taught, Lesson(2, (), (Row((1, 2), (7, 8), 2),)))
    for gone in ("b1", "a1", "never seen"):
        tenants.forget(gone)
    assert len(tenants) == 1
    [tree] = tenants.draft([ask("a3", "a")])
    assert tree.tokens[0] == 7
    tenants.forget("a2")
    tenants.forget("a3")
    assert len(tenants) == 0
    assert not len(tenants.draft([ask("a4", "a")])[0])


def test_a_tenant_that_is_dropped_leaves_nothing_in_memory() -> None:
    made: list[weakref.ref[TeachableMethod]] = []
    first = tables()
    fresh = first.fresh

    def noted() -> TeachableMethod:
        method = fresh()
        made.append(weakref.ref(method))
        return method

    first.fresh = noted  # type: ignore[method-assign]
    tenants = Tenants(first, most=0)
    asked = ask("s", "a")
    tenants.draft([asked])
    tenants.observe(asked.session, Lesson(2, (), ()))
    while tenants.settle():
        pass
    tenants.forget("s")
    assert [method() for method in made] == [None]


def test_a_batch_answers_each_ask_with_its_own_tenants_tree_in_order() -> None:
    tenants = Tenants(methods.create(METHOD, VOCAB), most=4)
    for tenant, token in (("a", 7), ("b", 9)):
        tenants.observe(ask(f"{tenant}0", tenant).session, Lesson(2, (), (Row((1, 2), (token,), 2),)))
    asks = [ask("a1", "a"), ask("b1", "b"), ask("a2", "a"), ask("c1", "c")]
    trees = tenants.draft(asks)
    assert [tree.tokens[:1] for tree in trees] == [(7,), (9,), (7,), ()]


def rows(first: int, count: int) -> Lesson:
    return Lesson(1, (), tuple(Row((token,), (7,), 1) for token in range(first, first + count)))


@given(
    capacity=st.integers(3, 12),
    writes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 9)), max_size=12),
)
def test_tables_hold_no_more_than_their_room_and_take_nobodys_share(
    capacity: int, writes: list[tuple[int, int, int]]
) -> None:
    first = Recycling(1, (0.0,), Room(capacity))
    tables = [first, first.fresh(), first.fresh()]
    known = Hypothesis(SessionKey("s", 1), SamplingParams(max_tokens=8), (1,))
    for place, start, count in writes:
        before = [len(table) for table in tables]
        tables[place].observe(known, rows(start, count))
        assert sum(len(table) for table in tables) <= capacity
        for other, table in enumerate(tables):
            if other != place and before[other] <= capacity // 3:
                assert len(table) == before[other]
