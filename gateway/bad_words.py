"""Words that a text must not contain, as ids of the model's vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def sequences(words: Sequence[str], encode: Callable[[str], Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The ids of each word at a text's beginning, and those behind a space.

    As vLLM does (`SamplingParams.update_from_tokenizer`): in most vocabularies a word's first id holds the
    space before it. vLLM leaves those behind a space out where they are more or fewer. `encode` adds no
    special tokens.
    """
    texts = [space + (word.lstrip() or word) for word in words for space in ("", " ")]
    return tuple(dict.fromkeys(ids for text in texts if (ids := tuple(encode(text)))))
