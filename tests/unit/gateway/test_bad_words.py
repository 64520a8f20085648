"""Bad words as ids, as vLLM has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gateway.bad_words import sequences


@pytest.mark.parametrize("word", ["fox", " fox", "quick brown", "zebra"])
def test_a_word_is_forbidden_by_itself_and_behind_a_space(word: str, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    found = sequences([word, word], encode)
    assert found == (tuple(encode(word.lstrip())), tuple(encode(" " + word.lstrip())))


def test_white_space_is_a_word_too() -> None:
    found = sequences(["\n", "a"], lambda text: [ord(sign) for sign in text])
    assert found == ((10,), (32, 10), (97,), (32, 97))
