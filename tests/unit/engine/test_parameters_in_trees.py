"""With any tree in which part of the text is right, the text is that without drafts, for each parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from bench.engine_loop import EngineLoop, Running, generate, loaded
from paceline.engine.engine import SessionRows, StepInput
from paceline.engine.logits.process import NothingLeftError
from paceline.engine.logits.session import SessionLogits
from paceline.engine.model import Decoder
from paceline.sampling import SamplingParams
from paceline.tree import TokenTree
from tests.random_trees import tree_around
from tests.tiny import VOCAB

PROMPT = [1, 40, 41, 42, 40, 41]
TOKENS = 24
PLAIN = SamplingParams(TOKENS)
FEW = frozenset(range(3, VOCAB, 31))


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Iterator[Decoder]:
    with loaded(tiny_model) as made:
        yield made


def _texts(decoder: Decoder, asked: list[SamplingParams], trees: Random | None = None) -> list[list[int]]:
    """What each session says; all are served at once, with random trees around what they said before."""
    sessions = [Running(list(PROMPT), len(PROMPT), params) for params in asked]
    right = _texts(decoder, asked) if trees is not None else []
    numbers = {id(session): number for number, session in enumerate(sessions)}

    def draft(session: Running) -> TokenTree:
        if trees is None:
            return TokenTree()
        done = len(session.token_ids) - len(PROMPT)
        rest = right[numbers[id(session)]][done : done + trees.randint(0, 6)]
        return tree_around(trees, rest, vocab=VOCAB)[0]

    return generate(EngineLoop.of(decoder, len(sessions)), sessions, TOKENS, draft)


def _changes(plain: SamplingParams, text: list[int]) -> dict[str, SamplingParams]:
    """Each parameter so that it changes this text; it is of few different tokens."""
    some = sorted({*text})
    every = replace(
        plain,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        repetition_penalty=1.2,
        logit_bias=((some[0], -5.0), (some[1], 2.0)),
        bad_words=((text[1],), (text[4], text[5])),
        top_p=0.9,
        typical_p=0.9,
        min_p=0.01,
        top_k=40,
    )
    return {
        "presence_penalty": replace(plain, presence_penalty=2.0),
        "presence_penalty below 0": replace(plain, presence_penalty=-2.0),
        "frequency_penalty": replace(plain, frequency_penalty=1.5),
        "repetition_penalty": replace(plain, repetition_penalty=1.8),
        "logit_bias": replace(plain, logit_bias=tuple((token, 3.0) for token in some[::2])),
        "bad_words": replace(plain, bad_words=((text[0],), (text[2],), (text[4], text[5]))),
        "a bad word of three": replace(plain, bad_words=(tuple(text[3:6]), (PROMPT[-1], text[0]))),
        "allowed_token_ids": replace(plain, allowed_token_ids=frozenset(some[1:])),
        "min_tokens": replace(plain, stop_token_ids=frozenset(text[:5]), stop_from=len(PROMPT) + 9),
        "all": every,
    }


@pytest.mark.parametrize("temperature", [0.0, 0.9], ids=["greedy", "seeded"])
def test_the_text_is_that_without_drafts(decoder: Decoder, temperature: float) -> None:
    plain = replace(PLAIN, temperature=temperature, seed=11, allowed_token_ids=FEW)
    [text] = _texts(decoder, [plain])
    changes = _changes(plain, text)
    asked = list(changes.values())
    said = _texts(decoder, asked)
    for name, each in zip(changes, said, strict=True):
        assert each != text, name
    asked += [replace(plain, typical_p=0.4), replace(plain, top_p=0.6)]
    said = _texts(decoder, asked)
    for seed in range(3):
        assert _texts(decoder, asked, Random(seed)) == said


def test_a_bad_word_does_not_occur(decoder: Decoder) -> None:
    [text] = _texts(decoder, [PLAIN])
    words = (tuple(text[1:3]), tuple(text[6:9]))
    [said] = _texts(decoder, [replace(PLAIN, bad_words=words)])
    for word in words:
        assert all(tuple(said[at : at + len(word)]) != word for at in range(len(said)))


def test_what_stands_before_a_row_with_nothing_left_is_committed_the_same_with_a_tree(
    decoder: Decoder,
) -> None:
    """Of three ids that may be drawn once each, the fourth token is none; others in the step go on."""
    ids = [50, 60, 70]
    once = tuple((first, then) for first in ids for then in ids)
    params = replace(PLAIN, allowed_token_ids=frozenset(ids), bad_words=once)
    [whole] = _texts(decoder, [PLAIN])

    def step(run: list[int], tree: list[int]) -> tuple[list[int], Exception | None]:
        loop = EngineLoop.of(decoder, 2)
        session, other = Running(run, len(PROMPT), params), Running(list(PROMPT), len(PROMPT), PLAIN)
        nodes = TokenTree(tuple(tree), tuple(range(-1, len(tree) - 1)), (-1.0,) * len(tree))
        rows = [
            SessionRows(loop.segment(session, nodes, len(run)), params, logits=session.logits),
            SessionRows(loop.segment(other, TokenTree()), PLAIN),
        ]
        mine, theirs = loop.engine.step(StepInput(rows, loop.allocator.take_tasks())).decisions
        assert theirs.bonus == whole[0]
        said = [] if mine.fault else [*(tree[node] for node in mine.path), mine.bonus]
        return said, mine.fault

    said, fault = step(list(PROMPT), [])
    assert fault is None
    # The tree guesses the one token that there is; behind it nothing may stand.
    assert step(list(PROMPT), said) == (said, None)
    none, fault = step([*PROMPT, *said], [])
    assert none == []
    assert isinstance(fault, NothingLeftError)


def test_a_session_without_its_text_is_told_so(decoder: Decoder) -> None:
    loop = EngineLoop.of(decoder, 1)
    params = replace(PLAIN, frequency_penalty=1.0)
    session = Running(list(PROMPT), len(PROMPT), params)
    rows = SessionRows(loop.segment(session, TokenTree()), params, logits=SessionLogits(params))
    with pytest.raises(ValueError, match="need the session's text"):
        loop.engine.step(StepInput([rows], loop.allocator.take_tasks()))
