"""The least number of tokens of a text, held against tokenizers of all kinds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gateway.prompt_length import LeastTokens, _byte_texts

WORDS = ["hello", " world", "    ", "--------", "\u00e9t\u00e9", "the ", "aaaa"]


def bpe(texts: list[str], alphabet: list[str], **options: bool) -> models.BPE:
    """A model that has `texts` as tokens."""
    vocabulary = {each: number for number, each in enumerate(dict.fromkeys(alphabet))}
    merges = []
    for text in texts:
        for end in range(2, len(text) + 1):
            merges.append((text[: end - 1], text[end - 1]))
            for token in (text[end - 1], text[:end]):
                vocabulary.setdefault(token, len(vocabulary))
    return models.BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges)), **options)


def byte_level(
    normalizer: normalizers.Normalizer | None = None, missing: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    written = ["".join(part for part, _ in bytes_of.pre_tokenize_str(word)) for word in WORDS]
    alphabet = [each for each in sorted(pre_tokenizers.ByteLevel.alphabet()) if each not in missing]
    written = [word for word in written if not set(word) & set(missing)]
    tokenizer = Tokenizer(bpe(written, alphabet))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(bpe([w.replace(" ", "\u2581") for w in WORDS], alphabet, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def stripping() -> PreTrainedTokenizerFast:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


BOUNDED = {
    "byte-level": byte_level(),
    "composing": byte_level(normalizers.NFC()),
    "byte fallback": byte_fallback(),
    # The first bytes of three-byte characters, and the line feed.
    "bytes missing": byte_level(missing=["\u00e1", "\u00e2", "\u010a"]),
    "bytes missing, composing": byte_level(normalizers.NFC(), missing=["\u00e1", "\u00c3"]),
}
UNBOUNDED = {
    "words": word_level(),
    "strips": stripping(),
    "compatibility": byte_level(normalizers.NFKC()),
    "trims": byte_level(normalizers.Strip()),
}
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*WORDS, "e\u0301", "<mask>", "\n", "\u1100\u1161\u11a8"]),
        st.text(max_size=4).filter(lambda text: text.isprintable() or text.isspace()),
    ),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("kind", BOUNDED)
@given(text=TEXTS)
def test_no_text_has_fewer_tokens(kind: str, text: str) -> None:
    tokenizer = BOUNDED[kind]
    assert LeastTokens.of(tokenizer).of_text(text) <= len(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("kind", BOUNDED)
def test_megabytes_are_known_to_be_many_tokens(kind: str) -> None:
    assert LeastTokens.of(BOUNDED[kind]).of_text("xyz " * (1 << 20)) > 100_000


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_a_tokenizer_that_may_drop_characters_has_no_bound(kind: str) -> None:
    assert LeastTokens.of(UNBOUNDED[kind]).of_text("x" * 100_000) == 0


def test_the_bytes_are_those_of_the_library() -> None:
    assert set(_byte_texts().values()) == set(pre_tokenizers.ByteLevel.alphabet())
    for byte, text in _byte_texts().items():
        if byte < 0x80:
            split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
                chr(byte)
            )
            assert [part for part, _ in split] == [text]
