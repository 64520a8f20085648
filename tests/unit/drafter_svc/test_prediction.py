"""A client's guess at its answer: how far edited files are drafted from it, and that it harms nothing."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from drafter_svc.hypothesis import Guess, Hypothesis
from drafter_svc.methods.base import Ask
from drafter_svc.methods.prediction import Prediction
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree, check
from paceline.verdict import Verdict

PROMPT = [900, 901]
VOCAB = 1000
NODES, DEPTH = 16, 8
# A file whose lines begin alike.
FILE = [token for line in range(20) for token in (1, 2, 100 + 3 * line, 101 + 3 * line, 102 + 3 * line, 3)]


def a_session(guess: Sequence[int] | None) -> Hypothesis:
    told = None if guess is None else Guess(tuple(guess), len(PROMPT))
    return Hypothesis(SessionKey("s", 1), SamplingParams(max_tokens=999), PROMPT, guess=told)


def accepted_of(tree: TokenTree, text: Sequence[int]) -> int:
    node = -1
    for count, token in enumerate(text):
        child = tree.child(node, token)
        if child is None:
            return count
        node = child
    return len(text)


def steps_for(guess: Sequence[int], answer: Sequence[int]) -> int:
    """Steps of a verifier that takes the whole tree each time."""
    method, session = Prediction(VOCAB), a_session(guess)
    method.attach(session)
    steps = done = 0
    while done < len(answer):
        (tree,) = method.draft([Ask(session, session.base_length, NODES, DEPTH)])
        check(tree, vocab_size=VOCAB, max_nodes=NODES, max_depth=DEPTH)
        count = min(accepted_of(tree, answer[done:]) + 1, len(answer) - done)
        verdict = Verdict(session.key, session.base_length, tuple(answer[done : done + count]))
        session.learn(verdict)
        done += count
        steps += 1
    return steps


def test_a_file_said_again_takes_full_chains() -> None:
    assert steps_for(FILE, FILE) == -(-len(FILE) // (DEPTH + 1))


def test_an_edited_file_costs_little_more() -> None:
    whole = steps_for(FILE, FILE)
    replaced = [*FILE[:40], 700, *FILE[41:80], 701, 702, *FILE[82:]]
    put_in = [*FILE[:60], 710, 711, 712, *FILE[60:]]
    left_out = [*FILE[:48], *FILE[66:]]
    moved = [*FILE[60:], *FILE[:60]]
    for answer in (replaced, put_in, left_out, moved):
        assert steps_for(FILE, answer) <= whole + 5, answer


def test_a_guess_of_something_else_is_of_no_use_and_no_harm() -> None:
    assert steps_for(FILE, list(range(500, 600))) == 100


ids = st.lists(st.integers(0, 6), max_size=40)


@given(ids, ids, st.integers(1, 20), st.integers(1, 9))
def test_whatever_is_guessed_trees_are_sound(
    guess: list[int], answer: list[int], nodes: int, depth: int
) -> None:
    method, session = Prediction(VOCAB), a_session(guess)
    method.attach(session)
    for token in [*answer, 5]:
        (small,) = method.draft([Ask(session, session.base_length, nodes, depth)])
        (large,) = method.draft([Ask(session, session.base_length, 2 * nodes, depth, small)])
        for tree, most in ((small, nodes), (large, 2 * nodes)):
            check(tree, vocab_size=VOCAB, max_nodes=most, max_depth=depth)
        # A drafter that goes on while the step runs sends more, not something else.
        assert paths(small) <= paths(large)
        session.learn(Verdict(session.key, session.base_length, (token,)))


def paths(tree: TokenTree) -> set[tuple[int, ...]]:
    made: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        made.append((*(made[parent] if parent >= 0 else ()), token))
    return set(made)


def test_ids_that_the_target_does_not_have_end_a_guess() -> None:
    method, session = Prediction(100), a_session([5, 6, 100, 7])
    method.attach(session)
    (tree,) = method.draft([Ask(session, session.base_length, NODES, DEPTH)])
    assert tree.tokens == (5, 6)


def test_without_a_guess_there_is_nothing() -> None:
    method, session = Prediction(VOCAB), a_session(None)
    method.attach(session)
    assert method.draft([Ask(session, session.base_length, NODES, DEPTH)]) == [TokenTree()]
    method.forget("s")
