"""Laws of every drafting method, and what each source contributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from safetensors.numpy import save_file

from drafter_svc import methods
from drafter_svc.config import DrafterSettings
from drafter_svc.hypothesis import Hypothesis, Lesson, Row
from drafter_svc.methods.base import Ask, Method, Needs, TeachableMethod
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree, check
from paceline.verdict import Feedback, Verdict
from tests.scripted import paths

NAMES = ("lookup", "recycling", "lookup+recycling")
VOCAB = 12
TOP_K = 4


def session(ids: list[int], session_id: str = "s", temperature: float = 0.0) -> Hypothesis:
    return Hypothesis(SessionKey(session_id, 1), SamplingParams(max_tokens=8, temperature=temperature), ids)


def draft(method: Method, known: Hypothesis, nodes: int, depth: int) -> TokenTree:
    [tree] = method.draft([Ask(known, known.base_length, nodes, depth)])
    return tree


def step(method: Method, known: Hypothesis, tree: TokenTree, truth: list[int], top: list[int]) -> None:
    """Play one verify step of a target that follows `truth` and whose top ids are always `top`."""
    node, accepted = -1, 0
    while accepted < len(truth) - 1 and (child := tree.child(node, truth[accepted])) is not None:
        node, accepted = child, accepted + 1
    verdict = Verdict(
        known.key,
        known.base_length,
        tuple(truth[: accepted + 1]),
        accepted=accepted,
        drafted=len(tree),
        feedback=Feedback.of(known.ids[-1], tree, tuple(top) * (len(tree) + 1), len(top)),
    )
    method.observe(known, known.learn(verdict))
    while method.settle():
        pass


@settings(deadline=None)
@given(
    name=st.sampled_from(NAMES),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60),
    text=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60),
    top=st.permutations(range(VOCAB)),
    temperature=st.sampled_from([0.0, 0.8]),
    budget=st.integers(0, 40),
    depth=st.integers(0, 9),
)
def test_every_tree_is_valid_for_any_history(
    name: str, prompt: list[int], text: list[int], top: list[int], temperature: float, budget: int, depth: int
) -> None:
    method = methods.create(name, VOCAB)
    known = session(prompt, temperature=temperature)
    while text:
        tree = draft(method, known, budget, depth)
        check(tree, vocab_size=VOCAB, max_nodes=budget, max_depth=max(depth, 1))
        assert depth or not len(tree)
        before = known.base_length
        step(method, known, tree, text, top[:TOP_K])
        text = text[known.base_length - before :]
    assert known.ids[: len(prompt)] == prompt


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60),
    sizes=st.tuples(st.integers(1, 12), st.integers(0, 20)),
    depths=st.tuples(st.integers(1, 5), st.integers(0, 5)),
    top=st.permutations(range(VOCAB)),
)
def test_a_tree_that_goes_on_is_the_one_that_is_drafted_at_once(
    prompt: list[int], sizes: tuple[int, int], depths: tuple[int, int], top: list[int]
) -> None:
    known = session(prompt)
    method = methods.create("lookup+recycling", VOCAB)
    step(method, known, TokenTree(), [3], top[:TOP_K])
    nodes, depth = sum(sizes), sum(depths)
    sent = draft(method, known, sizes[0], depths[0])
    [larger] = method.draft([Ask(known, known.base_length, nodes, depth, sent)])
    at_once = draft(method, known, nodes, depth)
    assert set(paths(sent)) <= set(paths(larger))
    check(larger, vocab_size=VOCAB, max_nodes=nodes, max_depth=depth)
    if depths[1] == 0:
        assert sorted(larger.survivals()) == pytest.approx(sorted(at_once.survivals()))


@settings(deadline=None)
@given(
    name=st.sampled_from(NAMES),
    prompt=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20),
    rows=st.lists(st.integers(0, 2**31 - 1), max_size=20),
)
def test_ids_outside_the_vocabulary_are_never_drafted(name: str, prompt: list[int], rows: list[int]) -> None:
    method = methods.create(name, VOCAB)
    known = session(prompt)
    verified = TokenTree(tuple(rows), (-1,) * len(rows), (-1.0,) * len(rows))
    feedback = Feedback.of(known.ids[-1], verified, tuple([known.ids[0]] * (len(rows) + 1)), 1)
    method.observe(known, known.learn(Verdict(known.key, known.base_length, (3,), feedback=feedback)))
    check(draft(method, known, 31, 8), vocab_size=VOCAB, max_nodes=31, max_depth=8)


def test_lookup_copies_what_followed_the_longest_match() -> None:
    tree = draft(methods.create("lookup", VOCAB), session([1, 2, 3, 4, 5, 9, 3, 8, 1, 2, 3]), 8, 2)
    assert tree.reroot([4]).tokens[0] == 5
    assert tree.tokens[0] == 4
    assert tree.child(-1, 8) is not None


def test_recycling_carries_the_targets_top_ids_to_another_session() -> None:
    method = methods.create("recycling", VOCAB)
    first = session([1, 2], "first")
    assert not len(draft(method, first, 8, 4))
    step(method, first, TokenTree(), [5], [5, 6, 7, 8])
    tree = draft(method, session([3, 2], "second"), 8, 1)
    assert tree.tokens == (5, 6, 7, 8)


def test_confidence_follows_what_was_accepted() -> None:
    method = methods.create("recycling", VOCAB)
    known = session([1])
    top = [1, 2, 3, 4]
    step(method, known, TokenTree(), [1], top)
    before = draft(method, known, 4, 1)
    for _ in range(200):
        step(method, known, draft(method, known, 4, 1), [2, 2], top)
    after = draft(method, known, 4, 1)
    assert before.tokens[0] == 1
    assert after.tokens[0] == 2
    assert after.log_probs[0] > before.log_probs[0]


def test_sampled_and_greedy_text_are_measured_apart() -> None:
    method = methods.create("lookup", VOCAB)
    known = session([1, 2, 1], temperature=0.8)
    greedy = session([1, 2, 1], "greedy")
    before = draft(method, greedy, 1, 1)
    for _ in range(50):
        step(method, known, draft(method, known, 1, 1), [7, 1], [7])
    assert draft(method, greedy, 1, 1) == before


def test_a_forgotten_session_starts_afresh() -> None:
    method = methods.create("lookup", VOCAB)
    assert len(draft(method, session([1, 2, 1]), 4, 4))
    method.forget("s")
    assert not len(draft(method, session([3, 4, 5]), 4, 4))
    method.forget("never seen")


@pytest.mark.parametrize(("name", "top_k"), [("lookup", 0), ("recycling", 8), ("lookup+recycling", 8)])
def test_a_method_needs_what_its_sources_use(name: str, top_k: int) -> None:
    assert methods.needs(name) == Needs(feedback_top_k=top_k)


def test_a_batch_is_drafted_as_its_asks_are_alone() -> None:
    asks = [Ask(session([1, 2, 3, n, 1, 2, 3], f"s{n}"), 7, nodes=n, depth=3) for n in range(6)]
    together = methods.create("lookup", VOCAB).draft(asks)
    alone = methods.create("lookup", VOCAB)
    assert together == [tree for ask in asks for tree in alone.draft([ask])]
    assert [len(tree) > 0 for tree in together] == [False, True, True, True, True, True]


@pytest.mark.parametrize("name", ["", "eagle", "lookup+lookup", "lookup+", "lookup recycling"])
def test_an_unknown_method_is_refused_by_name(name: str) -> None:
    with pytest.raises(methods.UnknownMethodError, match="lookup or recycling"):
        methods.create(name, VOCAB)
    with pytest.raises(methods.UnknownMethodError, match="lookup or recycling"):
        methods.needs(name)


def _taught(name: str) -> TeachableMethod:
    method = methods.create(name, VOCAB)
    known = session([1, 2, 3])
    for token in (4, 5, 6, 4, 5, 6):
        step(method, known, TokenTree(), [token], [token, 7, 8])
    method.forget("s")
    return method


def test_tables_hand_on_what_outlives_sessions(tmp_path: Path) -> None:
    taught = _taught("lookup+recycling")
    methods.tables.save(taught, tmp_path, "abc")
    fresh = methods.create("lookup+recycling", VOCAB)
    assert methods.tables.load(fresh, tmp_path, "abc")
    assert draft(fresh, session([9, 4], "new"), 8, 4).tokens[:2] == (5, 6)
    for name, table in fresh.tables().items():
        assert np.array_equal(table, taught.tables()[name]), name
    untaught = methods.create("lookup+recycling", VOCAB)
    assert not methods.tables.load(untaught, tmp_path, "0f0")
    assert not draft(untaught, session([9, 4], "new"), 8, 4).tokens


def test_a_method_takes_of_the_tables_what_it_has_sources_for(tmp_path: Path) -> None:
    methods.tables.save(_taught("lookup+recycling"), tmp_path, "abc")
    for name in ("recycling", "lookup"):
        other = methods.create(name, VOCAB)
        assert methods.tables.load(other, tmp_path, "abc")
        assert bool(draft(other, session([9, 4], "new"), 8, 4).tokens) == (name == "recycling")


def test_the_shipped_tables_fit_the_default_method() -> None:
    shipped = list(methods.tables.SHIPPED.glob("*.safetensors"))
    assert shipped
    for path in shipped:
        method = methods.create(DrafterSettings.model_fields["method"].default, 49152)
        assert methods.tables.load(method, methods.tables.SHIPPED, path.stem)
        assert len(draft(method, session([9, 4], "new"), 8, 4))


def test_malformed_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "7095.safetensors").write_bytes(b"no tables")
    with pytest.raises(methods.tables.TablesError, match="7095"):
        methods.tables.load(methods.create("lookup", VOCAB), tmp_path, "7095")
    tables = _taught("recycling").tables()
    for name, table in (
        ("recycling-2.contexts", tables["recycling-1.contexts"]),
        ("recycling-1.next", None),
        ("recycling-1.next", tables["recycling-1.next"].astype(np.float32)),
        ("frequency.counts", np.array([[-1, 5]], dtype=np.int32)),
    ):
        broken = {key: kept for key, kept in (tables | {name: table}).items() if kept is not None}
        save_file(broken, tmp_path / "b0ed.safetensors")
        with pytest.raises(methods.tables.TablesError, match="b0ed"):
            methods.tables.load(methods.create("recycling", VOCAB), tmp_path, "b0ed")


def test_what_is_learned_of_a_text_is_learned_of_its_steps() -> None:
    told = methods.create("recycling", VOCAB)
    known = session([1, 2, 3])
    rows = []
    ids = [1, 2, 3]
    for token in (4, 5, 6, 4, 5, 6):
        rows.append(Row(tuple(ids[-8:]), (token, 7, 8), len(ids)))
        ids.append(token)
    known.ids.extend(ids[3:])
    told.learn(known, Lesson(start=3, committed=tuple(ids[3:]), rows=tuple(rows)))
    tables, expected = told.tables(), _taught("recycling").tables()
    assert tables.keys() == expected.keys()
    for name, table in tables.items():
        assert np.array_equal(table, expected[name]), name


@pytest.mark.parametrize("fingerprint", ["", "../abc", "a/b", "x" * 5000, "a" * 5000, "a\0b"])
def test_a_verifier_names_no_other_file(fingerprint: str, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    methods.tables.save(_taught("recycling"), folder, "abc")
    methods.tables.save(_taught("recycling"), tmp_path, "abc")
    assert not methods.tables.load(methods.create("recycling", VOCAB), folder, fingerprint)


def test_an_accepted_node_counts_for_the_source_that_was_surest_of_it() -> None:
    def counts() -> dict[str, float]:
        name = "paceline:drafter_accepted_tokens_total"
        samples = (sample for family in REGISTRY.collect() for sample in family.samples)
        return {each.labels["source"]: each.value for each in samples if each.name == name}

    method = methods.create("lookup", VOCAB)
    known = session([1, 2, 3, 4, 5, 1, 2])
    tree = draft(method, known, 4, 4)
    before = counts()
    # Two nodes are accepted, then the target draws its own.
    step(method, known, tree, [3, 4, 9], [])
    assert known.ids[-3:] == [3, 4, 9]
    assert counts().get("lookup", 0.0) - before.get("lookup", 0.0) == 2
    step(method, known, TokenTree(), [1], [])
    assert counts().get("lookup", 0.0) - before.get("lookup", 0.0) == 2
