"""Chat messages to template to token ids; everything that needs the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from gateway.chat_template import ChatTemplate, ChatTurn
from gateway.detokenize import Detokenizer, TokenTexts
from gateway.errors import CONTEXT_LENGTH, OVERLOADED, RequestError
from gateway.prompt_length import LeastTokens
from gateway.tokenizing import Tokenizing
from paceline import telemetry
from paceline.handshake import vocab_fingerprint

log = telemetry.logger(__name__)

# Longer texts are tokenised on a thread and in turn, so that they hold up nobody.
_SHORT_CHARACTERS = 2000
# What a template may put around a message.
_TURN_CHARACTERS = 32


class Prompts:
    """The model's tokenizer and chat template."""

    def __init__(self, model: str, *, trust_remote_code: bool = False) -> None:
        """`trust_remote_code`: run Python that comes with the tokenizer, if transformers has none."""
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        self.vocab_fingerprint = vocab_fingerprint(self._tokenizer.get_vocab())
        self.stop_token_ids = _stop_ids(model, self._tokenizer, trust_remote_code)
        self._texts = TokenTexts.of(self._tokenizer)
        self.least = LeastTokens.of(self._tokenizer)
        self.tokenizing = Tokenizing()
        self._template = ChatTemplate(self._tokenizer)

    def detokenizer(self) -> Detokenizer:
        """A fresh detokenizer for one session."""
        return Detokenizer(self._texts)

    def from_text(self, text: str) -> Prompt:
        """A plain prompt, with the special tokens that the tokenizer puts around one."""
        return Prompt(self, len(text), lambda: text, plain=True)

    def from_chat(self, turns: Sequence[ChatTurn]) -> Prompt:
        """A chat in the model's template."""
        characters = sum(len(turn.content) + _TURN_CHARACTERS for turn in turns)
        return Prompt(self, characters, lambda: self._template.render(turns), plain=False)

    def tokenise(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Ids of a text as it goes to the model."""
        return tuple(self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


class Prompt:
    """A text or chat that is to become token ids."""

    def __init__(self, prompts: Prompts, characters: int, render: Callable[[], str], *, plain: bool) -> None:
        """`render`: the text as the tokenizer takes it, of about so many characters. `plain`: not a chat."""
        self.characters = characters
        self._prompts = prompts
        self._render = render
        self._plain = plain

    @property
    def short(self) -> bool:
        """Whether it is tokenised as quickly as its request was read."""
        return self.characters <= _SHORT_CHARACTERS

    def ids(self, context: int | None = None) -> tuple[int, ...]:
        """Its ids. Raises `RequestError`, of one that cannot fit `context` before it is tokenised."""
        text = self._render()
        if context is not None:
            self._check(text, context)
        return self._prompts.tokenise(text, add_special_tokens=self._plain)

    def check(self, context: int) -> None:
        """Raises `RequestError` where it is known already, without a template, that it cannot fit."""
        if self._plain:
            self._check(self._render(), context)

    def _check(self, text: str, context: int) -> None:
        least = self._prompts.least.of_text(text)
        if least >= context:
            raise RequestError(
                CONTEXT_LENGTH,
                f"the prompt has {least} tokens or more, the model's context {context}; "
                "at least one must be left for the answer",
            )

    async def ids_in_turn(self, context: int, holder: str, until: float) -> tuple[int, ...]:
        """`ids` on a thread, once the turn of the key's holder has come: by `until` on the loop's clock."""
        try:
            return await self._prompts.tokenizing.run(
                holder, self.characters, lambda: self.ids(context), until=until
            )
        except TimeoutError:
            raise RequestError(OVERLOADED, "too many long prompts wait to be tokenised") from None


def _stop_ids(model: str, tokenizer: Any, trust_remote_code: bool) -> frozenset[int]:
    """Ids that end a text: of the generation config, the model's config and the tokenizer.

    Some models name ids that they have no logit for; these are never drawn, and verifiers refuse them.
    """
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
    vocab_size = config.get_text_config(decoder=True).vocab_size
    foreign = sorted(token for token in found if not 0 <= token < vocab_size)
    if foreign:
        log.warning("stop ids outside the vocabulary are left out", ids=foreign, vocab_size=vocab_size)
    return frozenset(found.difference(foreign))
