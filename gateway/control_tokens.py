"""Keeps special tokens in users' texts plain text: they are tokenised character by character."""

from __future__ import annotations

import json
import secrets
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tokenizers import Tokenizer

from gateway.errors import UNSUPPORTED, RequestError
from paceline.service import telemetry

log = telemetry.logger(__name__)

# Unicode noncharacters, which proper texts do not contain. One before a code stands for what the code says:
# the noncharacter itself, nothing, or a special token that is a single character.
_ESCAPE, _ITSELF, _NOTHING = "\ufdd0", "\ufdd1", "\ufdd2"
_SINGLES = ["".join(pair) for pair in product(map(chr, range(0xFDD3, 0xFDF0)), repeat=2)]
_MARK = _ESCAPE + _NOTHING


@dataclass(frozen=True, slots=True)
class Marked:
    """A marked text, in which no special token's text is whole. `holds`: whether the original had one."""

    text: str
    holds: bool


class Marks:
    """Marks special tokens in users' texts, so that they differ from those that the template writes.

    A mark is put after the first character of each special token's text, and at an end of a text where the
    template's own text could complete one. `ControlTokens` removes marks after special tokens were found.
    """

    def __init__(self, tokens: Collection[str]) -> None:
        """`tokens`: the special tokens' texts."""
        single = sorted(token for token in tokens if len(token) == 1)
        if len(single) > len(_SINGLES):
            raise ValueError(f"{len(single)} special tokens are single characters")
        self._single = {token: _ESCAPE + code for token, code in zip(single, _SINGLES, strict=False)}
        # By first character, so that most texts are searched for a few characters only.
        longer = sorted(token for token in tokens if len(token) > 1)
        self._long: dict[str, list[str]] = defaultdict(list)
        for token in longer:
            self._long[token[:2]].append(token)
        self._longest = max(map(len, longer), default=0)
        self._heads = frozenset(token[:end] for token in longer for end in range(1, len(token)))
        self._tails = frozenset(token[start:] for token in longer for start in range(1, len(token)))
        self._tokens = tuple(longer)

    @property
    def replacements(self) -> list[tuple[str, str]]:
        """Replacements, in order, that remove marks and escapes from a text."""
        singles = [(code, token) for token, code in self._single.items()]
        return [(_MARK, ""), *singles, (_ESCAPE + _ITSELF, _ESCAPE)]

    def of(self, text: str) -> Marked:
        """The text with marks; unchanged if there is nothing to mark."""
        marked, holds = text.replace(_ESCAPE, _ESCAPE + _ITSELF), False
        for token, code in self._single.items():
            if token in marked:
                marked, holds = marked.replace(token, code), True
        for token in self._in(marked):
            # One pass misses occurrences that overlap.
            while token in marked:
                marked, holds = marked.replace(token, token[0] + _MARK + token[1:]), True
        return Marked(self._at_ends(marked), holds)

    def out(self, text: str) -> str:
        """The text without marks."""
        for old, new in self.replacements:
            text = text.replace(old, new)
        return text

    def count(self, text: str) -> int:
        """How many special tokens' texts it contains."""
        return sum(text.count(token) for token in [*self._single, *self._in(text)])

    def _in(self, text: str) -> Iterable[str]:
        for begin, tokens in self._long.items():
            if begin in text:
                yield from tokens

    def _at_ends(self, text: str) -> str:
        """Mark both ends of the text, and of the text as a template would strip it."""
        starts = {0, len(text) - len(text.lstrip())}
        ends = {len(text), len(text.rstrip())}
        places = {end for end in ends if self._begins_one(text[max(0, end - self._longest) : end])}
        places |= {start for start in starts if self._ends_one(text[start : start + self._longest])}
        places |= {
            start
            for start in starts
            for end in ends
            if 0 < end - start < self._longest and any(text[start:end] in token for token in self._tokens)
        }
        for place in sorted(places, reverse=True):
            text = text[:place] + _MARK + text[place:]
        return text

    def _begins_one(self, tail: str) -> bool:
        return any(tail[start:] in self._heads for start in range(len(tail)))

    def _ends_one(self, head: str) -> bool:
        return any(head[:end] in self._tails for end in range(1, len(head) + 1))


class ControlTokens:
    """A tokenizer's special tokens, and a copy of the tokenizer that removes marks.

    A tokenizer finds special tokens before it normalises, and the copy removes marks when it normalises. So
    a marked special token is plain text, which merges with its neighbours; the template's are tokens.
    """

    def __init__(self, tokenizer: Any, tokens: Collection[str] = ()) -> None:
        """`tokens`: texts of added tokens that are treated as special, besides those declared special."""
        added = tokenizer.added_tokens_decoder
        named = set(tokenizer.all_special_ids)
        self._ids = frozenset(
            index
            for index, token in added.items()
            if token.content and (token.special or index in named or token.content in tokens)
        )
        self._texts = frozenset(added[index].content for index in self._ids)
        self.marks = Marks(self._texts)
        self._copy: Tokenizer | None = None
        self._own_ids: dict[int, int] = {}
        try:
            self._copy, self._own_ids = _copy(tokenizer, self._texts, self.marks)
            # Some are searched for in the normalised text, where other texts may become them.
            self.normalised = any(added[index].normalized for index in self._ids)
            self._check(tokenizer)
        except Exception as error:
            # Tokenizers written in Python or with unusual parts; the library raises a bare Exception.
            self._copy = None
            self.normalised = False
            log.warning(
                "text that holds special tokens is refused: this tokenizer has no copy", why=str(error)
            )

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Ids of a marked text. Raises `RequestError` if no copy of the tokenizer could be made."""
        if self._copy is None:
            raise RequestError(
                UNSUPPORTED,
                "there is a special token's text in it, which this model's tokenizer takes for the token",
            )
        # A batch, as transformers does: it releases the interpreter lock.
        ids = self._copy.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
        return tuple(self._own_ids.get(token, token) for token in ids)

    def more_in(self, ids: Sequence[int], others: Sequence[int]) -> bool:
        """Whether some special token occurs more often in `ids` than in `others`."""
        counts = Counter(token for token in ids if token in self._ids)
        return not counts <= Counter(token for token in others if token in self._ids)

    def _check(self, tokenizer: Any) -> None:
        """Raises `ValueError` if the copy does not tokenise as it should."""
        text = " a ".join(sorted(self._texts))
        for add in (False, True):
            own = tuple(tokenizer(text, add_special_tokens=add)["input_ids"])
            if not self.normalised and self.encode(text, add_special_tokens=add) != own:
                raise ValueError("its copy has other ids")
        made = self._ids.intersection(self.encode(self.marks.of(text).text, add_special_tokens=False))
        # Skip characters without a token, which stay unknown, and those that are a special token.
        made -= {getattr(tokenizer, "unk_token_id", None)}
        if any(len(tokenizer.added_tokens_decoder[token].content) > 1 for token in made):
            raise ValueError("it makes special tokens of their characters")


def _copy(tokenizer: Any, texts: Collection[str], marks: Marks) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer that finds a special token by its whole text only, and the map of ids that differ."""
    if not type(tokenizer).__module__.startswith("transformers."):
        raise ValueError("its class is not of transformers")
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    state["truncation"] = state["padding"] = None
    hidden = _hide(state["model"], texts)
    own_ids = {}
    for token in state["added_tokens"]:
        own_ids[token["content"]] = token["id"]
        token["normalized"] &= token["content"] not in texts
    # A token that the model has no id for gets the next free one; most keep theirs.
    state["added_tokens"].sort(key=lambda token: token["content"] in hidden)
    steps = [
        {"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in marks.replacements
    ]
    if state["normalizer"] is not None:
        steps.append(state["normalizer"])
    state["normalizer"] = {"type": "Sequence", "normalizers": steps}
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = backend.encode_special_tokens
    given = copy.get_vocab(with_added_tokens=True)
    return copy, {given[text]: index for text, index in own_ids.items() if given[text] != index}


def _hide(model: dict[str, Any], texts: Collection[str]) -> frozenset[str]:
    """Rename the special tokens in a model's vocabulary, which may find them in any text.

    Returns those that were there.

    The new names are random, so no text contains them. A single character keeps its name: it has no other
    token, and its id as text is the same.
    """
    longer = sorted(text for text in texts if len(text) > 1)
    names = {text: f"{_ESCAPE}{secrets.token_hex(8)}{number}" for number, text in enumerate(longer)}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        hidden = names.keys() & vocabulary.keys()
        model["vocab"] = {names.get(text, text): index for text, index in vocabulary.items()}
    else:
        hidden = names.keys() & {text for text, _ in vocabulary}
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, hidden)]
    return frozenset(hidden)


def _touches(merge: list[str] | str, hidden: Collection[str]) -> bool:
    """Whether a merge produces one of them, or uses one."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first in hidden or second in hidden or first + second in hidden
