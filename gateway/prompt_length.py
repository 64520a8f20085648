"""How many tokens a text has at the least, told without tokenising it."""

from __future__ import annotations

import json
import string
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

_LETTERS = string.ascii_letters.encode()
# Canonical composition makes one character of four at the most.
_COMPOSED = 4


@dataclass(frozen=True, slots=True)
class LeastTokens:
    """A lower bound from the longest tokens of a vocabulary.

    It holds where every character of a text is part of some token. Tokenizers that drop, merge or strip
    characters (SentencePiece's normalisers, WordPiece, unknown tokens, added tokens that take the space
    around them) have no such bound: their texts are tokenised before it is known that they are too long.
    """

    # Of one token, at the most: characters, and ASCII letters. 0 where there is no bound.
    characters: int = 0
    letters: int = 0
    # How many characters may become one before they are tokens.
    composed: int = 1
    # Byte-level: bytes without a token of their own, which are left out. None where characters are counted.
    dropped: bytes | None = None

    @classmethod
    def of(cls, tokenizer: Any) -> LeastTokens:
        """The bound of a tokenizer of transformers."""
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
        """Tokens that the text has at the least; 0 where nothing is known."""
        if not self.characters:
            return 0
        composed = 1 if text.isascii() else self.composed
        if composed > 1:
            # What is composed may be of other bytes.
            return 0 if self.dropped else len(text) // (self.characters * composed)
        encoded = text.encode(errors="surrogatepass")
        length = len(text) if self.dropped is None else len(encoded.translate(None, self.dropped))
        letters = len(encoded) - len(encoded.translate(None, _LETTERS))
        return max(length // self.characters, letters // max(self.letters, 1))


def _state(part: Any) -> list[dict[str, Any]]:
    """A normaliser or pre-tokenizer as the steps that it takes."""
    if part is None:
        return []
    try:
        state = json.loads(part.__getstate__())
    except Exception:
        # One written in Python; the library raises its bare Exception.
        return [{"type": "unknown"}]
    return _steps(state)


def _steps(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    inner = state.get("normalizers") or state.get("pretokenizers") or []
    return [step for each in inner for step in _steps(each)]


def _composed(normalizer: list[dict[str, Any]]) -> int:
    """How many characters become one at the most; 0 where some may vanish."""
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
    """How byte-level tokenizers write each byte: printable ones as they are, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def _keeps_all(backend: Any, vocabulary: Container[str]) -> bool:
    """Whether each character ends up in a token, if need be in one for each of its bytes."""
    steps = _state(backend.pre_tokenizer)
    for step in steps:
        splits = step["type"] == "Split" and step["behavior"] != "Removed"
        if not splits and step["type"] not in ("ByteLevel", "Digits", "Metaspace"):
            return False
    if type(backend.model).__name__ != "BPE":
        return False
    if any(step["type"] == "ByteLevel" for step in steps):
        # But for bytes that no text of the tokenizer's training had: see `dropped`.
        return True
    return backend.model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
