"""A lower bound of a text's number of tokens, without tokenising it."""

from __future__ import annotations

import json
import string
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

_LETTERS = string.ascii_letters.encode()
# Canonical composition joins at most four characters into one.
_COMPOSED = 4


@dataclass(frozen=True, slots=True)
class LeastTokens:
    """A lower bound from the longest tokens of a vocabulary.

    It holds for tokenizers that put each character of a text into some token. Those that drop, merge or strip
    characters (SentencePiece's normalisers, WordPiece, unknown tokens, added tokens that absorb spaces) have
    no such bound: only tokenising shows that a text is too long.
    """

    # Most characters, and most ASCII letters, of one token. 0 if there is no bound.
    characters: int = 0
    letters: int = 0
    # Most characters that normalisation joins into one.
    composed: int = 1
    # Byte-level tokenizers: bytes without a token, which they drop. None if characters are counted.
    dropped: bytes | None = None

    @classmethod
    def of(cls, tokenizer: Any) -> LeastTokens:
        """From a transformers tokenizer."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not type(tokenizer).__module__.startswith("transformers."):
            return cls()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        composed = _composed(_state(backend.normalizer))
        strips = any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
        if strips or not composed or not _keeps_all(backend, vocabulary):
            return cls()
        characters = max(len(token) for token in vocabulary)
        letters = max(sum(each in string.ascii_letters for each in token) for token in vocabulary)
        dropped = None
        if any(step["type"] == "ByteLevel" for step in _state(backend.pre_tokenizer)):
            dropped = bytes(byte for byte, text in _byte_texts().items() if text not in vocabulary)
            if set(dropped) & set(_LETTERS):
                return cls()
        return cls(characters, letters, composed, dropped)

    def of_text(self, text: str) -> int:
        """At least this many tokens; 0 if there is no bound."""
        if not self.characters:
            return 0
        composed = 1 if text.isascii() else self.composed
        if composed > 1:
            # A composed character may have other bytes.
            return 0 if self.dropped else len(text) // (self.characters * composed)
        encoded = text.encode(errors="surrogatepass")
        length = len(text) if self.dropped is None else len(encoded.translate(None, self.dropped))
        letters = len(encoded) - len(encoded.translate(None, _LETTERS))
        return max(length // self.characters, letters // max(self.letters, 1))


def _state(part: Any) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer."""
    if part is None:
        return []
    try:
        state = json.loads(part.__getstate__())
    except Exception:
        # One written in Python; the library raises a bare Exception.
        return [{"type": "unknown"}]
    return _steps(state)


def _steps(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    inner = state.get("normalizers") or state.get("pretokenizers") or []
    return [step for each in inner for step in _steps(each)]


def _composed(normalizer: list[dict[str, Any]]) -> int:
    """Most characters that are joined into one; 0 if some may be dropped."""
    composed = 1
    for step in normalizer:
        if step["type"] == "NFC":
            composed = _COMPOSED
        elif step["type"] == "Replace":
            if step["pattern"] != {"String": " "} or not step["content"]:
                return 0
        elif step["type"] != "Prepend":
            return 0
    return composed


def _byte_texts() -> dict[int, str]:
    """The character for each byte in byte-level vocabularies: itself if printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def _keeps_all(backend: Any, vocabulary: Container[str]) -> bool:
    """Whether each character is part of some token, if need be of one token per byte."""
    steps = _state(backend.pre_tokenizer)
    for step in steps:
        splits = step["type"] == "Split" and step["behavior"] != "Removed"
        if not splits and step["type"] not in ("ByteLevel", "Digits", "Metaspace"):
            return False
    if type(backend.model).__name__ != "BPE":
        return False
    if any(step["type"] == "ByteLevel" for step in steps):
        # Except bytes that did not occur in the tokenizer's training texts: see `dropped`.
        return True
    return backend.model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
