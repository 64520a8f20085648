"""A model's chat template, for turns that are whole and for one that has only begun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

_MARK: Final = "\u241e"


class Template:
    """Turns as ids, and ids as text."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: of transformers, with a chat template."""
        self._tokenizer = tokenizer
        self.stop = frozenset({int(tokenizer.eos_token_id)})

    def asking(self, turns: Sequence[dict[str, str]], opening: str) -> tuple[int, ...]:
        """Ids up to the beginning of one more user turn."""
        marked = self._tokenizer.apply_chat_template(
            [*turns, {"role": "user", "content": _MARK}], tokenize=False
        )
        return self._encode(marked.partition(_MARK)[0] + opening)

    def answering(self, turns: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Ids up to where the answer to the last turn begins."""
        return self._encode(
            self._tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text without control tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def decode_after(self, ids: Sequence[int]) -> str:
        """Text that goes on from other text: blanks at its beginning are kept."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))
