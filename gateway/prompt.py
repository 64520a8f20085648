"""Chat messages to template to token ids; everything that needs the tokenizer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from gateway.detokenize import Detokenizer, TokenTexts
from gateway.errors import INVALID, RequestError

# Longer texts are tokenised on a thread, so that they do not hold up other sessions' tokens.
_INLINE_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message: role "system", "user" or "assistant", and its text."""

    role: str
    content: str


class Prompts:
    """The model's tokenizer and chat template."""

    def __init__(self, model: str, *, trust_remote_code: bool = False) -> None:
        """`trust_remote_code`: run Python that comes with the tokenizer, if transformers has none."""
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        self.stop_token_ids = _stop_ids(model, self._tokenizer, trust_remote_code)
        self._texts = TokenTexts.of(self._tokenizer)

    def detokenizer(self) -> Detokenizer:
        """A fresh detokenizer for one session."""
        return Detokenizer(self._texts)

    async def from_text(self, text: str) -> tuple[int, ...]:
        """Ids of a plain prompt, with the special tokens the tokenizer puts around one."""
        return await self._off_loop(len(text), lambda: tuple(self._tokenizer(text)["input_ids"]))

    async def from_chat(self, turns: Sequence[ChatTurn]) -> tuple[int, ...]:
        """Ids of a chat in the model's template. Raises `RequestError` when the template refuses it."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]

        def render() -> tuple[int, ...]:
            try:
                text = self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            except (TemplateError, ValueError) as error:
                raise RequestError(
                    INVALID, f"the model's chat template refuses this: {error}", "messages"
                ) from error
            return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

        return await self._off_loop(sum(len(turn.content) for turn in turns), render)

    async def _off_loop(self, characters: int, work: Any) -> tuple[int, ...]:
        if characters <= _INLINE_CHARACTERS:
            return work()  # type: ignore[no-any-return]
        return await asyncio.to_thread(work)


def _stop_ids(model: str, tokenizer: Any, trust_remote_code: bool) -> frozenset[int]:
    """Ids that end a text: of the generation config, the model's config and the tokenizer."""
    found: set[int] = set()
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    sources: list[Any] = [getattr(config, "eos_token_id", None), tokenizer.eos_token_id]
    folder = Path(model)
    if not folder.is_dir() or (folder / "generation_config.json").exists():
        with suppress(OSError, json.JSONDecodeError):
            sources.append(GenerationConfig.from_pretrained(model).eos_token_id)
    for source in sources:
        if isinstance(source, int):
            found.add(source)
        elif source is not None:
            found.update(source)
    return frozenset(found)
