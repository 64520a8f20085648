"""What the model is asked to write for training: jobs, each of which asks for one writing after another.

A chat model that is shown the beginning of a user's turn writes the rest of it, and then answers it (Magpie,
arXiv 2406.08464). A job draws from its own numbers alone, so that it is the same in any company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final, TypeAlias

from paceline.sampling import SamplingParams
from paceline.training import openings
from paceline.training.corpus import Text
from paceline.training.template import Template
from paceline.training.writing import Job, Wanted

_PASSAGE_TOKENS: Final = 288
_ANSWER_TOKENS: Final = (96, 144, 192, 256)
# Of answers, the rest are drawn with a temperature.
_GREEDY_SHARE: Final = 0.75
_FOLLOWED_SHARE: Final = 0.3


_Turns: TypeAlias = list[dict[str, str]]
_Texts: TypeAlias = Job[list[Text]]
_Step: TypeAlias = Job["_Chat"]


@dataclass(slots=True)
class _Chat:
    """A conversation so far."""

    turns: _Turns
    ids: tuple[int, ...] = ()
    answers: tuple[tuple[int, int], ...] = ()
    written: int = 0

    def text(self, job: int, kind: str) -> Text:
        return Text(job, kind, self.ids, self.written, self.answers)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    for number, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return number
    return min(len(left), len(right))


class _Asker:
    """The steps that jobs are made of."""

    def __init__(self, template: Template, random: Random, longest: int) -> None:
        self._template = template
        self.random = random
        self._longest = longest

    def _sampling(self, tokens: int, temperature: float) -> SamplingParams:
        return SamplingParams(
            max_tokens=tokens,
            temperature=temperature,
            top_p=0.95 if temperature else 1.0,
            seed=self.random.getrandbits(62),
            stop_token_ids=self._template.stop,
        )

    def ask(self, chat: _Chat, opening: str, tokens: int) -> _Step:
        """Let the model write a user turn that begins with `opening`; 0 `tokens`: it is all of it."""
        content, written = opening, 0
        if tokens:
            prompt = self._template.asking(chat.turns, opening)
            ids: list[int] = []
            if len(prompt) + tokens <= self._longest:
                ids = (yield Wanted(prompt, self._sampling(tokens, 1.0))).ids
            content, written = (opening + self._template.decode_after(ids)).strip(), len(ids)
        return replace(
            chat, turns=[*chat.turns, {"role": "user", "content": content}], written=chat.written + written
        )

    def answer(self, chat: _Chat, tokens: int, temperature: float | None = None) -> _Step:
        """Let the model answer the last turn."""
        prompt = self._template.answering(chat.turns)
        tokens = min(tokens, self._longest - len(prompt))
        if temperature is None:
            greedy = self.random.random() < _GREEDY_SHARE
            temperature = 0.0 if greedy else self.random.choice((0.6, 0.8, 1.0))
        ids: list[int] = []
        if tokens > 0:
            ids = (yield Wanted(prompt, self._sampling(tokens, temperature))).ids
        # Where the turns before were divided into other ids than the model wrote, the prompt's are kept.
        kept = tuple((start, _common(chat.ids[:end], prompt)) for start, end in chat.answers)
        return _Chat(
            [*chat.turns, {"role": "assistant", "content": self._template.decode(ids)}],
            (*prompt, *ids),
            (*(span for span in kept if span[0] < span[1]), (len(prompt), len(prompt) + len(ids))),
            chat.written + len(ids),
        )

    def converse(self, chat: _Chat, opening: str, tokens: int) -> _Step:
        """A user turn, its answer, and sometimes a second round."""
        chat = yield from self.ask(chat, opening, tokens)
        chat = yield from self.answer(chat, self.random.choice(_ANSWER_TOKENS))
        while self.random.random() < _FOLLOWED_SHARE and len(chat.ids) < self._longest // 2:
            chat = yield from self.ask(chat, self.random.choice(openings.FOLLOW_UP), 48)
            chat = yield from self.answer(chat, self.random.choice(_ANSWER_TOKENS))
        return chat

    def passage(self) -> Job[tuple[str, int]]:
        """A text that the model makes up, cut behind its last sentence, and how many ids it wrote."""
        request = openings.fill(self.random, self.random.choice(openings.ARTICLE))
        chat = yield from self.ask(_Chat([]), request, 0)
        chat = yield from self.answer(chat, _PASSAGE_TOKENS, self.random.choice((0.7, 0.9)))
        text = chat.turns[-1]["content"]
        return text[: text.rfind(".") + 1] or text, chat.written


def _simple(kind: str, beginnings: Sequence[str], tokens: int) -> Callable[[_Asker, int], _Texts]:
    def job(asker: _Asker, number: int) -> _Texts:
        opening = openings.fill(asker.random, asker.random.choice(beginnings))
        chat = yield from asker.converse(_Chat([]), opening, tokens)
        return [chat.text(number, kind)]

    return job


def _translate(asker: _Asker, number: int) -> _Texts:
    chat = yield from asker.converse(_Chat([]), openings.translation(asker.random), 64)
    return [chat.text(number, "translate")]


def _passages(asker: _Asker, number: int) -> _Texts:
    """Two passages, then several tasks on them, each a conversation of its own."""
    one, wrote_one = yield from asker.passage()
    two, wrote_two = yield from asker.passage()
    texts = []
    for kind, forms, tokens in (
        ("summarise", openings.SUMMARISE, 0),
        ("answer", openings.QUESTION, 32),
        ("rework", openings.REWORK, 16),
    ):
        form = asker.random.choice(forms)
        passage, other = (one, two) if asker.random.random() < 0.5 else (two, one)
        if kind == "summarise" and asker.random.random() < 0.5:
            passage = f"{passage}\n\n{other}"
        opening = form.replace("{passage}", passage).replace("{passage2}", other)
        chat = yield from asker.converse(_Chat([]), opening, tokens)
        texts.append(chat.text(number, kind))
    # A passage is counted where it is read first.
    texts[0] = replace(texts[0], written=texts[0].written + wrote_one + wrote_two)
    return texts


_Maker: TypeAlias = Callable[[_Asker, int], _Texts]
_JOBS: Final[dict[str, tuple[int, _Maker]]] = {
    "free": (10, _simple("free", openings.FREE, 96)),
    "ask": (16, _simple("ask", openings.ASK, 32)),
    "reckon": (16, _simple("reckon", openings.RECKON, 96)),
    "explain": (10, _simple("explain", openings.EXPLAIN, 48)),
    "write": (16, _simple("write", openings.WRITE, 64)),
    "translate": (16, _translate),
    "passages": (16, _passages),
}
KINDS: Final = (*(name for name in _JOBS if name != "passages"), "summarise", "answer", "rework")


def job(template: Template, number: int, *, seed: int, longest: int) -> Job[list[Text]]:
    """Job `number` of a corpus; no text of it is longer than `longest` ids."""
    random = Random(f"{seed}/{number}")
    makers = [maker for _, maker in _JOBS.values()]
    maker = random.choices(makers, [weight for weight, _ in _JOBS.values()])[0]
    return maker(_Asker(template, random, longest), number)
