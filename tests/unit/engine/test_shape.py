"""What is seen of a model when it is loaded: how far its rows see, and that what is not served is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import masking_utils

from bench.engine_loop import loaded
from bench.families import SHORT_CONTEXT, make_family_model
from bench.tiny_sizes import VOCAB
from paceline.engine.attention import AttentionError, Forward, Reach, Rule, attending, ragged_attention
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.engine.rows import Segment
from paceline.engine.shape import reach_of

CPU = torch.device("cpu")


@given(size=st.integers(2, 300), context=st.integers(1, 400))
def test_a_window_is_told_from_a_chunk(size: int, context: int) -> None:
    whole = size >= context
    window = masking_utils.sliding_window_causal_mask_function(size)
    assert reach_of(window, context) == (Reach() if whole else Reach(window=size))
    chunks = masking_utils.chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64))
    assert reach_of(chunks, context) == (Reach() if whole else Reach(chunk=size))
    assert reach_of(masking_utils.causal_mask_function, context) == Reach()


def _every_other(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
    return (key <= row) & (key % 2 == row % 2)


@pytest.mark.parametrize(
    "sees",
    [
        masking_utils.bidirectional_mask_function,
        masking_utils.sliding_window_bidirectional_mask_function(5),
        _every_other,
    ],
)
def test_other_masks_are_refused(sees: Callable[..., Tensor]) -> None:
    with pytest.raises(AttentionError, match="its rows see"):
        reach_of(sees, 64)


class _Nothing:
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        return query.transpose(0, 1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"position_bias": torch.zeros(1)}, "Module attends with position_bias"),
        ({"indices": torch.zeros(1)}, "Module attends with indices"),
        ({"is_causal": False}, "is_causal=False"),
    ],
)
def test_an_argument_that_is_not_served_is_refused_by_name(argument: dict[str, Any], message: str) -> None:
    rows = torch.zeros(1, 2, 3, 16)
    with attending(Forward(_Nothing(), ())):
        ragged_attention(nn.Module(), rows, rows, rows, None, dropout=0.0, is_causal=None, indices=None)
        with pytest.raises(AttentionError, match=message):
            ragged_attention(nn.Module(), rows, rows, rows, None, **argument)


def _last_logits(decoder: Decoder, texts: list[list[int]]) -> Tensor:
    """Of the last row of each text, all in one batch."""
    pool = decoder.kv_pool(len(texts))
    segments = [Segment(run=text, start=0, blocks=(number,)) for number, text in enumerate(texts)]
    return decoder.forward(decoder.batch(segments), pool)


@pytest.mark.parametrize("family", ["llama_dynamic", "phi3_longrope"])
def test_another_session_s_length_changes_no_rotation(family: str, tmp_path: Path) -> None:
    """Not even rows that are behind the context: nodes of a tree at a text's end."""
    make_family_model(tmp_path, family)
    generator = torch.Generator().manual_seed(1)
    short, long = (
        torch.randint(VOCAB, (length,), generator=generator).tolist() for length in (20, SHORT_CONTEXT + 20)
    )
    with loaded(tmp_path) as decoder:
        assert decoder.shape.max_context == SHORT_CONTEXT < BLOCK_SIZE
        beside, after = _last_logits(decoder, [short, long])[0], _last_logits(decoder, [short])[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([short])).logits[0, -1]
    torch.testing.assert_close(beside, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
