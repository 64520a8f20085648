"""Prompts: chat messages and texts to token ids, and all else that needs the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from gateway.bad_words import sequences
from gateway.chat import Chat
from gateway.chat_template import AS_USUAL, ChatTemplate, Rendering
from gateway.config import ReasoningParserName, SpecialTokensInText, ToolParserName
from gateway.control_tokens import ControlTokens
from gateway.detokenize import Detokenizer, TokenTexts
from gateway.errors import CONTEXT_LENGTH, OVERLOADED, RequestError
from gateway.prompt_length import LeastTokens
from gateway.reading import PLAIN, Reading
from gateway.reasoning import STYLES, style_of
from gateway.token_bytes import TokenBytes
from gateway.tokenizing import Tokenizing
from gateway.tools.choice import ToolUse, name_of
from paceline.service import telemetry
from paceline.vocabulary import vocab_fingerprint

log = telemetry.logger(__name__)

# Longer texts are tokenised on threads, in turn, so that they delay no other request.
_SHORT_CHARACTERS = 2000
# Most characters that a template puts around a message.
_TURN_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Text:
    """A text to tokenise."""

    plain: str
    # The text with marks, so that users' special tokens stay text; None if there are none.
    marked: str | None = None
    # Whether the plain text is known to contain a user's special token.
    holds: bool = False


class Prompts:
    """The model's tokenizer and chat template."""

    def __init__(
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        special_tokens_in_text: SpecialTokensInText = "plain-completions",
        tool_parser: ToolParserName = "auto",
        reasoning_parser: ReasoningParserName = "auto",
    ) -> None:
        """`trust_remote_code`: run Python code that comes with the tokenizer, if transformers has none.

        `special_tokens_in_text`: where special tokens that users write count as tokens, and not as text.
        `tool_parser`, `reasoning_parser`: how answers are read; "auto" follows from template and vocabulary.
        """
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            model, trust_remote_code=trust_remote_code
        )
        self.vocab_fingerprint = vocab_fingerprint(self._tokenizer.get_vocab())
        self.stop_token_ids = _stop_ids(model, self._tokenizer, trust_remote_code)
        self._texts = TokenTexts.of(self._tokenizer)
        self._all_texts = TokenTexts.of(self._tokenizer, special=True)
        self.token_bytes = TokenBytes(self._tokenizer, self._texts)
        self.least = LeastTokens.of(self._tokenizer)
        self.tokenizing = Tokenizing()
        self._template = ChatTemplate(self._tokenizer)
        self._tool_format = self._template.tool_format if tool_parser == "auto" else tool_parser
        self._thinking: str = "" if reasoning_parser == "none" else reasoning_parser
        if reasoning_parser == "auto":
            self._thinking = style_of(self._template.source, self._tokenizer.get_vocab())
        self._showing: dict[frozenset[str], TokenTexts] = {}
        self._control: ControlTokens | None = None
        if special_tokens_in_text != "everywhere":
            self._control = ControlTokens(self._tokenizer, self._turn_tokens())
        self._parses_plain = special_tokens_in_text != "nowhere"

    def detokenizer(self, reading: Reading = PLAIN, *, special: bool = False) -> Detokenizer:
        """A fresh detokenizer for one session; `special` shows special tokens.

        Those that are needed to read the answer are shown in any case.
        """
        if special:
            return Detokenizer(self._all_texts)
        tokens = reading.tokens
        if tokens not in self._showing:
            self._showing[tokens] = self._texts.showing(tokens)
        return Detokenizer(self._showing[tokens])

    def reading(
        self, chat: Chat, use: ToolUse, rendering: Rendering = AS_USUAL, *, tells_thoughts: bool = True
    ) -> Reading:
        """How a chat's answer is read. Raises `RequestError` for a choice of tools that is not served."""
        names = tuple(map(name_of, use.offered()))
        style = STYLES.get(self._thinking)
        return Reading(
            self._thinking,
            style is not None and self._template.opens(style, chat, rendering),
            tells_thoughts,
            self._tool_format if names else "",
            names,
            use.most_calls,
        )

    def text_of(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids; `special` shows special tokens."""
        detokenizer = self.detokenizer(special=special)
        return detokenizer.push(token_ids) + detokenizer.flush()

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary spells it."""
        return [str(piece) for piece in self._tokenizer.convert_ids_to_tokens(list(token_ids))]

    def rendering(self, rendering: Rendering, effort: str | None) -> Rendering:
        """The same with so much reasoning asked for. Raises `RequestError` if the template cannot ask."""
        if effort is None:
            return rendering
        return replace(rendering, variables={**self._template.variables_of(effort), **rendering.variables})

    def count(self, text: str) -> int:
        """About how many tokens a text has."""
        return len(self._ids(text, add_special_tokens=False))

    def from_text(self, text: str, *, special: bool = True) -> Prompt:
        """A plain prompt; `special`: with the special tokens that the tokenizer puts around it."""
        return Prompt(self, len(text), lambda: self._plain(text), given=text, special=special)

    def from_chat(self, chat: Chat, rendering: Rendering = AS_USUAL, *, special: bool = False) -> Prompt:
        """A chat in the model's template; `special`: as of `from_text`. Raises `RequestError`."""
        rendering.check()
        characters = chat.characters + _TURN_CHARACTERS * len(chat.turns)
        return Prompt(self, characters, lambda: self._chat(chat, rendering), special=special)

    def bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Words that a text must not contain, as ids."""
        return sequences(words, lambda text: self._ids(text, add_special_tokens=False))

    def least_of(self, text: Text) -> int:
        """A lower bound of its number of tokens."""
        least = self.least.of_text(text.plain)
        if text.marked is None or self._control is None:
            return least
        # Marks are not part of it, and a template may have treated them as characters.
        return min(least, self.least.of_text(self._control.marks.out(text.marked)))

    def tokenise(self, text: Text, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Ids of a text for the model. Raises `RequestError` if a user's text would become special tokens."""
        if text.marked is None or self._control is None:
            return self._ids(text.plain, add_special_tokens=add_special_tokens)
        ids = self._control.encode(text.marked, add_special_tokens=add_special_tokens)
        if text.holds:
            return ids
        own = self._ids(text.plain, add_special_tokens=add_special_tokens)
        return ids if self._control.more_in(own, ids) else own

    def _ids(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def _plain(self, text: str) -> Text:
        if self._parses_plain or self._control is None:
            return Text(text)
        marked = self._control.marks.of(text)
        return (
            Text(text, marked.text, marked.holds) if marked.holds or self._control.normalised else Text(text)
        )

    def _chat(self, chat: Chat, rendering: Rendering = AS_USUAL) -> Text:
        plain = self._template.render(chat, rendering)
        if self._control is None:
            return Text(plain)
        marks, holds = self._control.marks, False

        def mark(text: str) -> str:
            nonlocal holds
            marked = marks.of(text)
            holds = holds or marked.holds
            return marked.text

        marked = chat.mapped(mark), rendering.mapped(mark)
        text = plain if marked == (chat, rendering) else self._template.render(*marked)
        if holds or self._control.normalised or marks.count(text) != marks.count(plain):
            return Text(plain, text, holds)
        # The marks, if any, were at ends that complete no special token.
        return Text(plain)

    def _turn_tokens(self) -> frozenset[str]:
        """Added tokens that count as special: they delimit a chat's turns, or end a text."""
        added = self._tokenizer.added_tokens_decoder
        found = {*self._ids(self._template.example, add_special_tokens=False), *self.stop_token_ids}
        texts = (added[index].content for index in found if index in added)
        return frozenset(text for text in texts if not text.isspace())


class Prompt:
    """A text or chat before it is tokenised."""

    def __init__(
        self,
        prompts: Prompts,
        characters: int,
        render: Callable[[], Text],
        *,
        given: str | None = None,
        special: bool,
    ) -> None:
        """`render`: gives the text to tokenise, of about `characters`. `given`: a plain prompt's text.

        `special`: the tokenizer's special tokens are put around it.
        """
        self.characters = characters
        self._special = special
        self._prompts = prompts
        self._render = render
        self._given = given

    @property
    def short(self) -> bool:
        """Whether it is short enough to be tokenised at once, on the event loop."""
        return self.characters <= _SHORT_CHARACTERS

    def ids(self, context: int | None = None) -> tuple[int, ...]:
        """Its ids. Raises `RequestError`, before it is tokenised if it cannot fit `context`."""
        text = self._render()
        if context is not None:
            _check(self._prompts.least_of(text), context)
        return self._prompts.tokenise(text, add_special_tokens=self._special)

    def check(self, context: int) -> None:
        """Raises `RequestError` if it is clear without rendering that it cannot fit."""
        if self._given is not None:
            _check(self._prompts.least.of_text(self._given), context)

    async def ids_of_any_length(self, holder: str, until: float) -> tuple[int, ...]:
        """Its ids, at once if it is short, else as `ids_in_turn`. Raises `RequestError`."""
        return self.ids() if self.short else await self.ids_in_turn(None, holder, until)

    async def ids_in_turn(self, context: int | None, holder: str, until: float) -> tuple[int, ...]:
        """As `ids`, on a thread, when the key holder's turn comes: before `until` on the loop's clock."""
        try:
            return await self._prompts.tokenizing.run(
                holder, self.characters, lambda: self.ids(context), until=until
            )
        except TimeoutError:
            raise RequestError(OVERLOADED, "too many long prompts wait to be tokenised") from None


def _check(least: int, context: int) -> None:
    """Raises `RequestError` if a prompt of `tokens` or more cannot fit."""
    if least >= context:
        raise RequestError(
            CONTEXT_LENGTH,
            f"the prompt has {least} tokens or more, the model's context {context}; "
            "at least one must be left for the answer",
        )


def _stop_ids(model: str, tokenizer: Any, trust_remote_code: bool) -> frozenset[int]:
    """Ids that end a text, from the generation config, the model's config and the tokenizer.

    Ids without a logit, which some models name, are left out: they are never drawn, and verifiers refuse
    them.
    """
    found: set[int] = set()
    config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    sources: list[Any] = [getattr(config, "eos_token_id", None), tokenizer.eos_token_id]
    folder = Path(model)
    if not folder.is_dir() or (folder / "generation_config.json").exists():
        with suppress(OSError, json.JSONDecodeError):
            sources.append(transformers.GenerationConfig.from_pretrained(model).eos_token_id)
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
