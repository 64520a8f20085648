"""A model's tokens as bytes, for matchers."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import Any

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from paceline.constraints.constraint import ConstraintError

_WORD = 32


class Vocabulary:
    """Made once for a model; shared by all its matchers, on any thread."""

    def __init__(self, tokens: LLTokenizer, fingerprint: str, size: int) -> None:
        """`size`: of the model, which need not have a logit for every token."""
        self.tokens = tokens
        self.fingerprint = fingerprint
        self.words = -(-size // _WORD)
        # All but those that the library takes for the end of a text: which ones end it, each session says.
        self.within = self.bits(range(size)) & ~self.bits(
            token for token in tokens.eos_tokens if token < size
        )

    @classmethod
    def of(cls, tokenizer: Any, fingerprint: str, size: int) -> Vocabulary:
        """From a transformers tokenizer, of a model with `size` logits.

        Holds the interpreter's lock for about a second with a large one: for before a service is ready.
        Raises `ConstraintError` for a tokenizer whose tokens are not known as bytes.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConstraintError("this model's tokenizer does not say which bytes its tokens are")
        backend = copy(backend)
        backend.no_padding()
        backend.no_truncation()
        most = max(size, *(token + 1 for token in tokenizer.get_vocab().values()))
        try:
            tokens = LLTokenizer(backend.to_str(), n_vocab=most, eos_token=tokenizer.eos_token_id)
        except ValueError as error:
            raise ConstraintError(f"this model's tokenizer does not take constraints: {error}") from error
        return cls(tokens, fingerprint, size)

    @classmethod
    def bytes_only(cls) -> Vocabulary:
        """One token for each byte: enough to know whether a constraint can be compiled."""
        tokens = LLTokenizer("byte")
        return cls(tokens, "bytes", tokens.vocab_size)

    @staticmethod
    def has(mask: NDArray[np.uint32], token: int) -> bool:
        """Whether a mask has a token."""
        return bool(mask[token // _WORD] >> np.uint32(token % _WORD) & 1)

    def bits(self, ids: Iterable[int]) -> NDArray[np.uint32]:
        """A mask, as matchers give it, of these ids."""
        flags = np.zeros(self.words * _WORD, dtype=np.uint8)
        flags[list(ids)] = 1
        return np.packbits(flags, bitorder="little").view(np.uint32)
