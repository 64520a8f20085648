"""Each processor and all together against transformers' own, on the same logits and the same text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
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

from paceline.engine.logits.filters import kept_tokens
from paceline.engine.logits.history import History
from paceline.engine.logits.process import process
from paceline.engine.logits.session import LogitsRow, SessionLogits
from paceline.sampling import SamplingParams

VOCAB = 60
# Few, so that texts repeat them and bad words occur.
IDS = st.integers(0, 7)


@dataclass(frozen=True)
class Place:
    """A text, and how much of it a row has as its way through a tree."""

    prompt: list[int]
    generated: list[int]
    path: int

    def row(self, params: SamplingParams) -> LogitsRow:
        committed = self.generated[: len(self.generated) - self.path]
        history = History([*self.prompt, *committed], len(self.prompt))
        position = len(self.prompt) + len(self.generated)
        path = self.generated[len(committed) :]
        return LogitsRow(SessionLogits(params, history), position, path)


@st.composite
def places(draw: st.DrawFn) -> Place:
    prompt = draw(st.lists(IDS, min_size=4, max_size=12))
    generated = draw(st.lists(IDS, max_size=14))
    return Place(prompt, generated, draw(st.integers(0, min(6, len(generated)))))


# A value of each parameter that asks for something.
ASKED: dict[str, st.SearchStrategy[Any]] = {
    "top_k": st.integers(1, 30),
    "top_p": st.sampled_from([0.2, 0.7, 0.95]),
    "min_p": st.sampled_from([0.02, 0.3]),
    "typical_p": st.sampled_from([0.2, 0.7, 0.95]),
    "presence_penalty": st.sampled_from([-2.0, 0.5, 2.0]),
    "frequency_penalty": st.sampled_from([-1.5, 0.25, 2.0]),
    "repetition_penalty": st.sampled_from([0.5, 1.1, 1.9]),
    # Multiples of what single precision, which transformers keeps biases in, holds.
    "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.integers(-400, 400), max_size=8).map(
        lambda biases: tuple(sorted((token, value / 4) for token, value in biases.items()))
    ),
    "allowed_token_ids": st.frozensets(st.integers(0, VOCAB - 1), min_size=12, max_size=40),
    "bad_words": st.lists(st.lists(IDS, min_size=1, max_size=3).map(tuple), max_size=9, unique=True).map(
        tuple
    ),
}
COMBINATIONS = st.sets(st.sampled_from(sorted(ASKED))).flatmap(
    lambda names: st.fixed_dictionaries({name: ASKED[name] for name in names})
)


def _by_transformers(params: SamplingParams, place: Place, logits: Tensor) -> Tensor:
    """Scores [1, vocab] that a token is drawn from by their softmax."""
    ids = torch.LongTensor([[*place.prompt, *place.generated]])
    if params.allowed_token_ids:
        banned = [token for token in range(VOCAB) if token not in params.allowed_token_ids]
        logits = logits.index_fill(1, torch.tensor(banned), -torch.inf)
    processors = LogitsProcessorList()
    if params.bad_words:
        processors.append(NoBadWordsLogitsProcessor([list(words) for words in params.bad_words]))
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    logits = processors(ids, logits)
    # OpenAI's, which transformers has not: https://platform.openai.com/docs/api-reference
    counts = Counter(place.generated)
    for token, count in counts.items():
        logits[0, token] -= count * params.frequency_penalty + (count > 0) * params.presence_penalty
    processors = LogitsProcessorList()
    if params.logit_bias:
        processors.append(
            SequenceBiasLogitsProcessor([[[token], value] for token, value in params.logit_bias])
        )
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        processors.append(TypicalLogitsWarper(params.typical_p))
    return processors(ids, logits)


def _rounding_decides(scores: np.ndarray[Any, np.dtype[np.float64]], params: SamplingParams) -> bool:
    """Whether a change of scores by a part in a billion changes what is kept."""
    kept = [
        kept_tokens(scores * (1 + sign * 1e-9) + noise, params)
        for sign in (-1, 1)
        for noise in (0.0, np.random.default_rng(0).normal(size=len(scores)) * 1e-9)
    ]
    return any(not np.array_equal(_finite(scores, each), _finite(scores, kept[0])) for each in kept)


def _finite(scores: np.ndarray[Any, np.dtype[np.float64]], kept: Any) -> list[int]:
    found = np.arange(len(scores)) if kept is None else kept
    return [token for token in found.tolist() if np.isfinite(scores[token])]


@given(
    place=places(),
    asked=COMBINATIONS,
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=400, deadline=None)
def test_what_a_token_is_drawn_from_is_transformers(
    place: Place, asked: dict[str, Any], temperature: float, seed: int
) -> None:
    params = SamplingParams(1, temperature=temperature, **asked)
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    expected = _by_transformers(params, place, logits.clone())[0]
    row = place.row(params)
    done = process(logits, [row]) if row.adjusted else None
    assert done is None or not done.faults
    scores = (logits if done is None else done.logits)[0].numpy() / temperature
    assume(not _rounding_decides(scores, params))
    kept = _finite(scores, kept_tokens(scores, params))
    assert kept == expected.isfinite().nonzero().flatten().tolist()
    np.testing.assert_allclose(scores[kept], expected[kept].numpy(), rtol=1e-12, atol=1e-12)


@given(place=places(), asked=COMBINATIONS, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_a_row_is_processed_as_if_it_were_alone(place: Place, asked: dict[str, Any], seed: int) -> None:
    """Bitwise, in the precision that rows are served in."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(3, VOCAB, generator=generator) * 3).to(torch.bfloat16)
    others = [SamplingParams(1, repetition_penalty=1.7), SamplingParams(1, logit_bias=((3, 5.0),))]
    rows = [place.row(params) for params in (others[0], SamplingParams(1, **asked), others[1])]
    together = process(logits, rows).logits
    for index, row in enumerate(rows):
        assert torch.equal(process(logits[index : index + 1], [row]).logits[0], together[index])
