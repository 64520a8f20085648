"""What a drafter is told of verified rows: which of its nodes they were, and what the model said there."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bench.engine_loop import EngineLoop, Running, generate, loaded
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Verdict
from tests.unit.verifier_svc.step_loops import LoopUnderTest, running_loop
from verifier_svc import warmup
from verifier_svc.cost import StepCost
from verifier_svc.drafting import Drafting
from verifier_svc.progress import SessionStep
from verifier_svc.sessions import Session

PROMPT = [1, 5, 9]
TOKENS = 120
TOP_K = 3


def _boastful(text: list[int], base: int) -> TokenTree:
    """The text's next ids, said to be unlikely, behind others that are said to be nearly certain."""
    wrong = [token for token in range(300, 310) if token not in text[base : base + 1]][:4]
    right = text[base : base + 3]
    tokens = [token for first in wrong for token in (first, 8)] + right
    parents = [node for first in range(0, 2 * len(wrong), 2) for node in (-1, first)]
    parents += [-1, *range(len(parents), len(parents) + len(right) - 1)][: len(right)]
    return TokenTree(tuple(tokens), tuple(parents), (*[-0.1] * (2 * len(wrong)), *[-1.5] * len(right)))


def _paths(tokens: tuple[int, ...], parents: tuple[int, ...]) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def _verdicts(folder: Path, text: list[int], tokens: int = TOKENS) -> list[tuple[TokenTree, Verdict]]:
    """Every verdict of a session whose drafter boasts, with the tree it answers."""
    taught: list[tuple[TokenTree, Verdict]] = []
    done = threading.Event()
    session = Session(
        key=SessionKey("s", 1),
        prompt_length=len(PROMPT),
        token_ids=list(PROMPT),
        sampling=SamplingParams(max_tokens=tokens),
        length_limit=len(PROMPT) + tokens,
        drafting=Drafting(stream_id=1, told_length=len(PROMPT)),
    )
    tree = TokenTree()

    def on_step(world: LoopUnderTest, step: SessionStep) -> None:
        nonlocal tree
        taught.append((tree, step.verdict))
        if step.verdict.finished:
            done.set()
        else:
            tree = _boastful(text, session.length)
            world.came(session, tree)

    with (
        loaded(folder) as decoder,
        running_loop(decoder, on_step, prefix_cache=False, feedback_top_k=TOP_K) as world,
    ):
        world.add(session)
        assert done.wait(60)
        assert world.loop.failure is None
        assert not world.faults
        assert not world.harmful
    return taught


@pytest.fixture
def text(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the session's text will be; rows cost nothing: else a tiny model's times say what is verified."""
    monkeypatch.setattr(warmup, "measure", lambda *_, **__: StepCost({1: 1.0, 8: 1.0}, 0.0))
    with loaded(tiny_model) as decoder:
        engine = EngineLoop.of(decoder, blocks=16)
        running = Running(list(PROMPT), len(PROMPT), SamplingParams(max_tokens=TOKENS))
        return PROMPT + generate(engine, [running], TOKENS)[0]


def test_rows_say_which_nodes_were_verified_and_what_came_of_each(tiny_model: Path, text: list[int]) -> None:
    taught = _verdicts(tiny_model, text)
    own_choice = 0
    for sent, verdict in taught:
        assert list(verdict.committed) == text[verdict.base_length :][: len(verdict.committed)]
        back = verdict.feedback
        if back is None:
            # A drafter that boasts so may lose its budget for some steps; nothing was verified then.
            assert not verdict.drafted
            continue
        assert len(back.row_tokens) == 1 + verdict.drafted == len(back.row_parents)
        assert len(back.top_ids) == TOP_K * len(back.row_tokens)
        assert (back.row_tokens[0], back.row_parents[0]) == (text[verdict.base_length - 1], -1)
        verified = tuple(parent - 1 for parent in back.row_parents[1:])
        paths = _paths(back.row_tokens[1:], verified)
        assert set(paths) <= set(_paths(sent.tokens, sent.parents))
        own_choice += sent.best(verdict.drafted).tokens != back.row_tokens[1:]
        # At the last accepted row the model's best id is the token that it added itself.
        *accepted, bonus = verdict.committed
        row = 1 + paths.index(tuple(accepted)) if accepted else 0
        assert back.top_ids[row * TOP_K] == bonus
    # It was not the drafter's word alone that chose.
    assert own_choice > len(taught) / 4
    assert any(verdict.accepted for _, verdict in taught)


def test_nothing_is_asked_for_before_the_last_token(tiny_model: Path, text: list[int]) -> None:
    """It is the target's own, so a tree would only be waited for."""
    (_, one_left), (_, last) = _verdicts(tiny_model, text, tokens=2)
    assert (one_left.draft_budget, last.drafted, last.finished) == (0, 0, True)
    (_, two_left), *_ = _verdicts(tiny_model, text, tokens=3)
    assert two_left.draft_budget > 0
