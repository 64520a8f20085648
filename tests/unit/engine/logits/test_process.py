"""Masks, rows that can draw nothing, and broken rows: a legal token or a fault, and no harm to others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paceline.engine.logits.draw import NO_TOKEN, targets
from paceline.engine.logits.process import NothingLeftError
from paceline.engine.logits.session import LogitsRow, SessionLogits
from paceline.sampling import SamplingParams

VOCAB = 40
SAMPLINGS = [SamplingParams(1), SamplingParams(1, temperature=1.0, top_p=0.9)]


class Only:
    """A matcher that lets these tokens stand; fails where there are none."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens
        self.asked: list[tuple[int, ...]] = []

    def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
        self.asked.append(tuple(path))
        if not self.tokens:
            raise RuntimeError("a constraint that breaks")
        bits = np.zeros(64, np.uint8)
        bits[list(self.tokens)] = 1
        return np.packbits(bits, bitorder="little").view("<u4")


def _logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(7)) * 3


def _row(params: SamplingParams, matcher: Only | None = None) -> LogitsRow:
    return LogitsRow(SessionLogits(params), 5, (), matcher)


@pytest.mark.parametrize("params", SAMPLINGS)
def test_a_matchers_mask_and_a_list_of_ids_hold_together(params: SamplingParams) -> None:
    both = SamplingParams(1, temperature=params.temperature, allowed_token_ids=frozenset({3, 33, 39}))
    for position in range(20):
        rows = [LogitsRow(SessionLogits(both), position, (), Only(2, 33, 39)), _row(params)]
        drawn = targets(_logits(2), rows)
        assert drawn.tokens[0] in (33, 39)
        assert not drawn.faults


def test_a_bias_brings_no_banned_token_back() -> None:
    params = SamplingParams(1, logit_bias=((3, 100.0),), bad_words=((3,),))
    assert targets(_logits(1), [_row(params)]).tokens != [3]
    assert targets(_logits(1), [_row(SamplingParams(1, logit_bias=((3, 100.0),)))]).tokens == [3]


@pytest.mark.parametrize("params", SAMPLINGS)
def test_a_row_with_nothing_left_is_a_fault_of_its_own(params: SamplingParams) -> None:
    clean = targets(_logits(3), [_row(params)] * 3)
    empty = SamplingParams(
        1, temperature=params.temperature, allowed_token_ids=frozenset({4, 5}), bad_words=((4,), (5,))
    )
    drawn = targets(_logits(3), [_row(params), _row(empty), _row(params)])
    assert drawn.tokens == [clean.tokens[0], NO_TOKEN, clean.tokens[2]]
    assert isinstance(drawn.faults[1], NothingLeftError)


@pytest.mark.parametrize("params", SAMPLINGS)
def test_a_matcher_that_raises_is_a_fault_of_its_own(params: SamplingParams) -> None:
    clean = targets(_logits(2), [_row(params)] * 2)
    drawn = targets(_logits(2), [_row(params, Only()), _row(params)])
    assert drawn.tokens == [NO_TOKEN, clean.tokens[1]]
    assert str(drawn.faults[0]) == "a constraint that breaks"


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_row_draws_a_token_that_it_may_draw(poison: float, temperature: float) -> None:
    params = SamplingParams(
        1,
        temperature=temperature,
        allowed_token_ids=frozenset({7, 9, 11}),
        bad_words=((7,),),
        logit_bias=((9, -100.0),),
    )
    whole, part = _logits(1), _logits(1)
    whole[:] = poison
    part[0, [7, 9, 11]] = poison
    for logits in (whole, part):
        for position in range(20):
            drawn = targets(logits, [LogitsRow(SessionLogits(params), position)])
            assert drawn.tokens[0] in (9, 11)


def test_parameters_that_look_back_need_the_text() -> None:
    with pytest.raises(ValueError, match="need the session's text"):
        targets(_logits(1), [_row(SamplingParams(1, presence_penalty=1.0))])
