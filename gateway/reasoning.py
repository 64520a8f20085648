"""Splits the reasoning that begins a model's text from what follows it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from gateway.characters import SPACE, Characters, Reading


@dataclass(frozen=True, slots=True)
class Thinking:
    """What stands around a model's reasoning."""

    opening: str
    closing: str


STYLES: Final = {
    "think": Thinking("<think>", "</think>"),
    "magistral": Thinking("[THINK]", "[/THINK]"),
}


def style_of(template: str, vocabulary: Collection[str]) -> str:
    """The name of the style that a model's chat template or vocabulary shows; empty if it shows none."""
    for name, style in STYLES.items():
        marks = (style.opening, style.closing)
        if style.closing in template or all(mark in vocabulary for mark in marks):
            return name
    return ""


def is_open(rendered: str, style: Thinking) -> bool:
    """Whether a rendered chat ends inside reasoning."""
    return rendered.rfind(style.opening) > rendered.rfind(style.closing)


class ReasoningSplit:
    """One answer's split, as its text comes.

    Reasoning stands at the text's start only. Spaces around it and around its marks are nothing. What is told
    up to any place in the text is a function of the text up to there.
    """

    def __init__(self, style: Thinking, *, opened: bool) -> None:
        """`opened`: the prompt has opened the reasoning already."""
        self._style = style
        self._opened = opened
        self._source = Characters()
        self._thought = self._rest = ""
        self._within = self._begun = self._behind = self._over = False
        self._steps = self._all()
        next(self._steps)

    def push(self, text: str) -> tuple[str, str]:
        """New reasoning, and new text behind it."""
        for place, char in enumerate(text):
            if self._over:
                return "", text[place:]
            self._steps.send(char)
            if self._over:
                return self._thoughts(), self._rest + text[place + 1 :]
        return self._thoughts(), ""

    def flush(self) -> tuple[str, str]:
        """The rest: the text is at its end."""
        held = self._source.taken()
        if self._behind:
            return "", ""
        if self._within:
            return held.rstrip(SPACE) if self._begun else held.strip(SPACE), ""
        return "", held

    def _thoughts(self) -> str:
        told, self._thought = self._thought, ""
        return told

    def _all(self) -> Reading[None]:
        """Read up to the first character behind the reasoning."""
        source, style = self._source, self._style
        char = yield from source.solid()
        if char == style.opening[0] and (yield from source.is_next(style.opening[1:])):
            source.taken()
        elif self._opened:
            source.read_again(source.taken())
        else:
            yield from self._end()
        self._within = True
        while True:
            char = yield from source.solid()
            if char == style.closing[0] and (yield from source.is_next(style.closing[1:])):
                break
            text = source.taken()
            self._thought += text if self._begun else text.lstrip(SPACE)
            self._begun = True
        self._behind = True
        source.taken()
        yield from source.solid()
        source.held = source.held.lstrip(SPACE)
        yield from self._end()

    def _end(self) -> Reading[None]:
        self._rest, self._over = self._source.left(), True
        yield
