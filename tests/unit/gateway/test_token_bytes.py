"""Tokens one by one: all of a text's tokens' bytes are the text's bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gateway.detokenize import TokenTexts
from gateway.token_bytes import TokenBytes, byte_values


def byte_level() -> Any:
    vocab = {character: index for index, character in enumerate(byte_values())}
    merges = [("Ġ", "a"), ("Ã", "©")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def byte_fallback() -> Any:
    vocab = {"<unk>": 0, **{f"<0x{value:02X}>": value + 1 for value in range(256)}}
    for character in "▁abc":
        vocab[character] = len(vocab)
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


MADE = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


@pytest.mark.parametrize("kind", list(MADE))
@given(text=st.text(alphabet=st.sampled_from("ab cé€😀\n"), min_size=1))
def test_tokens_together_are_the_text(kind: str, text: str) -> None:
    tokenizer = MADE[kind]
    tokens = TokenBytes(tokenizer, TokenTexts.of(tokenizer))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(tokens.of(token) for token in ids) == text.encode()


@pytest.mark.parametrize("kind", list(MADE))
def test_special_tokens_and_ids_that_pad(kind: str) -> None:
    tokenizer = MADE[kind]
    tokens = TokenBytes(tokenizer, TokenTexts.of(tokenizer))
    assert tokens.text(tokenizer.eos_token_id) == "<|end|>"
    assert tokens.of(10_000) == b""


def test_a_part_of_a_character_is_replaced_in_text_only() -> None:
    tokenizer = MADE["byte_level"]
    tokens = TokenBytes(tokenizer, TokenTexts.of(tokenizer))
    first, *_ = tokenizer("😀", add_special_tokens=False)["input_ids"]
    assert (tokens.of(first), tokens.text(first)) == (b"\xf0", "\N{REPLACEMENT CHARACTER}")
