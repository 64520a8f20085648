"""What single tokens stand for: bytes that need not be whole characters."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from gateway.detokenize import INCOMPLETE, TokenTexts

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes of each token, as in the middle of a text; special tokens as they are written."""

    def __init__(self, tokenizer: Any, texts: TokenTexts) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        self._special: dict[int, str] = {
            index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._known: dict[int, bytes] = {}

    def of(self, token: int) -> bytes:
        """Empty for an id that only pads the model's vocabulary."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._bytes(token)
        return found

    def text(self, token: int) -> str:
        """As text; bytes of incomplete characters are replaced."""
        return self.of(token).decode(errors="replace")

    def _bytes(self, token: int) -> bytes:
        if token >= self._texts.size:
            return b""
        if token in self._special:
            return self._special[token].encode()
        anchor = self._texts.anchor
        text = self._texts.decode([*anchor, token])[len(self._texts.anchor_text) :]
        if INCOMPLETE not in text:
            return text.encode()
        written = str(self._tokenizer.convert_ids_to_tokens(token))
        if byte := _BYTE_TOKEN.fullmatch(written):
            return bytes([int(byte[1], 16)])
        values = [byte_values().get(character) for character in written]
        return bytes(value for value in values if value is not None) if None not in values else text.encode()


@cache
def byte_values() -> dict[str, int]:
    """The byte that each character stands for in vocabularies of byte-level BPE.

    Radford et al. 2019 (GPT-2): bytes that print stand for themselves, the others in order for the characters
    from U+0100 on.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printing]
    return {
        **{chr(value): value for value in printing},
        **{chr(0x100 + place): value for place, value in enumerate(others)},
    }
