"""Greedy text by FlexAttention is that of `transformers.generate`. By the CPU's kernels: docs/models.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import models

# One family for everything that attention is asked for: it is slow without a compiler.
FAMILIES = ("llama", "gemma2", "gemma3", "gpt_oss", "llama4", "deepseek_v3", "mpt")


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_generate(family: str, tmp_path: Path) -> None:
    with models.tiny_and_quiet():
        row = models.run(family, tmp_path, backend="cuda", ways=["drafted"])
    assert row.served, row
