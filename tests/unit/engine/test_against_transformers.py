"""Greedy text of the engine equals `transformers.generate`, with and without drafts, family by family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from paceline.session import SamplingParams
from paceline.tree import TokenTree
from tests.engine_loop import EngineLoop, Running, generate, loaded
from tests.tiny_families import FAMILIES, VOCAB, make_family_model

PROMPT_LENGTHS = (1, 7, 40)
COUNT = 24
SAMPLING = SamplingParams(max_tokens=COUNT)
# Slow without a compiler: one family for everything that attention is asked for.
FLEX = ("llama", "gemma2", "gemma3", "gpt_oss", "llama4", "deepseek_v3", "mpt")


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


def _by_transformers(folder: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = []
    for prompt in _prompts():
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False)
        texts.append(out[0, len(prompt) :].tolist())
    return texts


@pytest.mark.parametrize(
    ("family", "kernels"),
    [
        *(pytest.param(family, True, id=f"{family}-kernels") for family in FAMILIES),
        *(pytest.param(family, False, id=f"{family}-flex") for family in FLEX),
    ],
)
def test_greedy_text_is_that_of_generate(family: str, kernels: bool, tmp_path: Path) -> None:
    folder = make_family_model(tmp_path, family)
    expected = _by_transformers(folder)
    truth = {tuple(prompt): text for prompt, text in zip(_prompts(), expected, strict=True)}

    def draft(session: Running) -> TokenTree:
        """Three right tokens, and a wrong one beside each."""
        done = len(session.token_ids) - session.prompt_length
        rest = truth[tuple(session.token_ids[: session.prompt_length])][done : done + 3]
        tokens, parents, parent = [], [], -1
        for token in rest:
            tokens += [(token + 1) % VOCAB, token]
            parents += [parent, parent]
            parent = len(tokens) - 1
        return TokenTree(tuple(tokens), tuple(parents), (-1.0,) * len(tokens))

    with loaded(folder, kernels=kernels) as decoder:
        for drafter in (lambda session: TokenTree(), draft):
            sessions = [Running(prompt, len(prompt), SAMPLING) for prompt in _prompts()]
            assert generate(EngineLoop.of(decoder, 8), sessions, COUNT, drafter) == expected
    assert len({token for text in expected for token in text}) > 6, "too dull to tell engines apart"
