"""The joint law of three tokens through the real engine, against exact enumeration, for any drafter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from bench.engine_loop import EngineLoop, Running, generate, loaded
from paceline.engine import verify
from paceline.engine.logits.draw import Draws, targets
from paceline.engine.logits.session import LogitsRow, SessionLogits
from paceline.sampling import SamplingParams
from paceline.tree import TokenTree
from tests.tiny import make_enumerable_model

VOCAB = 6
DEPTH = 3
SEEDS = 1600
BATCH = 400
# The last of these is committed already, so that the first token checked may be a drafted one.
TEXT = [1, 4, 2, 3]
# Seeds are fixed, so this never flickers: a law that is right stays above, one that is wrong far below.
SIGNIFICANCE = 1e-3

SAMPLING = {
    "plain": SamplingParams(max_tokens=DEPTH, temperature=0.9),
    "top_k": SamplingParams(max_tokens=DEPTH, temperature=1.0, top_k=3),
    "top_p": SamplingParams(max_tokens=DEPTH, temperature=0.8, top_p=0.85),
    "min_p": SamplingParams(max_tokens=DEPTH, temperature=1.0, top_k=5, top_p=0.95, min_p=0.1),
    "penalties": SamplingParams(
        max_tokens=DEPTH,
        temperature=0.9,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=0.75,
        repetition_penalty=1.3,
    ),
    "words": SamplingParams(
        max_tokens=DEPTH,
        temperature=1.2,
        typical_p=0.9,
        logit_bias=((0, 1.0), (5, -0.5)),
        bad_words=((TEXT[-1], 2), (0, 1), (0, 0, 0)),
    ),
}
Drafter = Callable[[Running], TokenTree]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_enumerable_model(tmp_path_factory.mktemp("enumerable"), vocab_size=VOCAB, layers=1, seed=3)


@pytest.fixture(scope="module")
def laws(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Probability of every continuation, [VOCAB] * DEPTH, by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return {name: _enumerate(model, sampling) for name, sampling in SAMPLING.items()}


@torch.inference_mode()
def _enumerate(model: torch.nn.Module, sampling: SamplingParams) -> NDArray[np.float64]:
    warpers = LogitsProcessorList()
    if sampling.bad_words:
        warpers.append(NoBadWordsLogitsProcessor([list(words) for words in sampling.bad_words]))
    if sampling.repetition_penalty != 1:
        warpers.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    warpers.append(partial(_penalised, sampling))
    if sampling.logit_bias:
        warpers.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in sampling.logit_bias]))
    warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p < 1:
        warpers.append(TypicalLogitsWarper(sampling.typical_p))
    joint = torch.ones((), dtype=torch.float64)
    for depth in range(DEPTH):
        prefixes = list(itertools.product(range(VOCAB), repeat=depth))
        ids = torch.LongTensor([[*TEXT, *prefix] for prefix in prefixes])
        law = warpers(ids, model(ids).logits[:, -1]).softmax(-1)
        joint = joint[..., None] * law.view(*[VOCAB] * (depth + 1))
    return joint.numpy()


def _penalised(sampling: SamplingParams, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Less what stands behind the prompt, which is the text but its last id."""
    counts = torch.nn.functional.one_hot(ids[:, len(TEXT) - 1 :], VOCAB).sum(1)
    return logits - counts * sampling.frequency_penalty - (counts > 0) * sampling.presence_penalty


@pytest.fixture(scope="module")
def sample(folder: Path) -> Iterator[Callable[[str, Drafter], NDArray[np.int64]]]:
    """Continuations [SEEDS, DEPTH] under one of `SAMPLING`, drawn by the engine with a drafter's help."""
    with loaded(folder) as decoder:

        def run(name: str, drafter: Drafter) -> NDArray[np.int64]:
            drawn: list[list[int]] = []
            for first in range(0, SEEDS, BATCH):
                sessions = [
                    Running(list(TEXT), len(TEXT) - 1, replace(SAMPLING[name], seed=seed))
                    for seed in range(first, first + BATCH)
                ]
                drawn += generate(EngineLoop.of(decoder, BATCH), sessions, DEPTH, drafter)
            return np.array(drawn)

        yield run


@pytest.fixture(scope="module")
def plain(sample: Callable[[str, Drafter], NDArray[np.int64]]) -> Callable[[str], NDArray[np.int64]]:
    """The same without a drafter, once per sampling."""
    return cache(lambda name: sample(name, _none))


def _p_value(drawn: NDArray[np.int64], law: NDArray[np.float64]) -> float:
    cells = np.ravel_multi_index(tuple(drawn.T), law.shape)
    counts = np.bincount(cells, minlength=law.size).astype(float)
    expected = law.ravel() * len(drawn)
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    return float(chisquare(counts[kept], expected[kept]).pvalue)


def _none(session: Running) -> TokenTree:
    return TokenTree()


def _chain(tokens: list[int]) -> TokenTree:
    return TokenTree(tuple(tokens), tuple(range(-1, len(tokens) - 1)), (-1.0,) * len(tokens))


def _done(session: Running) -> tuple[int, ...]:
    return tuple(session.token_ids[len(TEXT) :])


def _likeliest_chain(law: NDArray[np.float64], truth: NDArray[np.int64]) -> Drafter:
    def draft(session: Running) -> TokenTree:
        path = list(_done(session))
        start = len(path)
        while len(path) < DEPTH:
            path.append(int(law[tuple(path)].reshape(VOCAB, -1).sum(axis=1).argmax()))
        return _chain(path[start:])

    return draft


def _likeliest_tree(law: NDArray[np.float64], truth: NDArray[np.int64]) -> Drafter:
    """The two likeliest children of every node."""

    def draft(session: Running) -> TokenTree:
        tokens: list[int] = []
        parents: list[int] = []
        level = [(-1, _done(session))]
        for _ in range(DEPTH - len(_done(session))):
            below = []
            for node, path in level:
                for token in law[path].reshape(VOCAB, -1).sum(axis=1).argsort()[:-3:-1].tolist():
                    below.append((len(tokens), (*path, token)))
                    tokens.append(token)
                    parents.append(node)
            level = below
        return TokenTree(tuple(tokens), tuple(parents), (-1.0,) * len(tokens))

    return draft


def _oracle(law: NDArray[np.float64], truth: NDArray[np.int64]) -> Drafter:
    """Knows the noise too: every node is accepted."""
    return lambda session: _chain(truth[session.sampling.seed, len(_done(session)) :].tolist())


def _always_wrong(law: NDArray[np.float64], truth: NDArray[np.int64]) -> Drafter:
    return lambda session: _chain(
        ((truth[session.sampling.seed, len(_done(session)) :] + 1) % VOCAB).tolist()
    )


def _selective(law: NDArray[np.float64], truth: NDArray[np.int64]) -> Drafter:
    """Would favour token 0: drafts the truth where that is 0, and something else everywhere else."""

    def draft(session: Running) -> TokenTree:
        rest = truth[session.sampling.seed, len(_done(session)) :].tolist()
        return _chain([0 if token == 0 else (token + 1) % VOCAB for token in rest])

    return draft


DRAFTERS = [_likeliest_chain, _likeliest_tree, _oracle, _always_wrong, _selective]


@pytest.mark.parametrize("name", SAMPLING)
def test_without_a_drafter_the_law_is_the_models(
    name: str, laws: dict[str, NDArray[np.float64]], plain: Callable[[str], NDArray[np.int64]]
) -> None:
    assert _p_value(plain(name), laws[name]) > SIGNIFICANCE


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("make", DRAFTERS)
def test_with_any_drafter_the_law_is_the_models_and_the_tokens_are_the_same(
    make: Callable[[NDArray[np.float64], NDArray[np.int64]], Drafter],
    name: str,
    laws: dict[str, NDArray[np.float64]],
    sample: Callable[[str, Drafter], NDArray[np.int64]],
    plain: Callable[[str], NDArray[np.int64]],
) -> None:
    drawn = sample(name, make(laws[name], plain(name)))
    assert _p_value(drawn, laws[name]) > SIGNIFICANCE
    assert np.array_equal(drawn, plain(name))


def _changed(row: LogitsRow, **changes: Any) -> LogitsRow:
    return replace(row, session=SessionLogits(replace(row.params, **changes), row.session.history))


def _greedy_in_one_session_of_five(logits: torch.Tensor, rows: list[LogitsRow], *_: object) -> Draws:
    biased = [_changed(row, temperature=0.0) if row.params.seed % 5 == 0 else row for row in rows]
    return targets(logits, biased)


def _same_noise_at_every_position(logits: torch.Tensor, rows: list[LogitsRow], *_: object) -> Draws:
    return targets(logits, [replace(row, position=0) for row in rows])


def _without_filters(logits: torch.Tensor, rows: list[LogitsRow], *_: object) -> Draws:
    return targets(logits, [_changed(row, top_p=1.0) for row in rows])


def _blind_to_what_was_generated(logits: torch.Tensor, rows: list[LogitsRow], *_: object) -> Draws:
    return targets(logits, [_changed(row, frequency_penalty=0.0, presence_penalty=0.0) for row in rows])


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (_greedy_in_one_session_of_five, "plain"),
        (_same_noise_at_every_position, "plain"),
        (_without_filters, "top_p"),
        (_blind_to_what_was_generated, "penalties"),
    ],
)
def test_a_biased_rule_is_rejected(
    rule: Callable[..., Draws],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    laws: dict[str, NDArray[np.float64]],
    sample: Callable[[str, Drafter], NDArray[np.int64]],
) -> None:
    monkeypatch.setattr(verify, "targets", rule)
    assert _p_value(sample(name, _none), laws[name]) < 1e-9
