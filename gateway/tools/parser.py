"""Splits a model's text into content and tool calls as it comes."""

from __future__ import annotations

from collections.abc import Collection
from string import ascii_letters, digits

from gateway.characters import SPACE, Characters, MalformedError, Reading
from gateway.parts import CallArguments, CallBegan, Part, Said, joined
from gateway.tools.call_object import read_arguments, read_object
from gateway.tools.formats import Format

_IN_NAMES = frozenset(ascii_letters + digits + "_-.")


class ToolParser:
    """One answer's parser: text in, parts out.

    The parts told up to any place in the text are a function of the text up to there: it does not matter how
    the text was cut. A call that is malformed before it could be told, or of an unknown name, is content;
    spaces around calls are nothing.
    """

    def __init__(self, form: Format, names: Collection[str], *, most_calls: int | None = None) -> None:
        """`names`: of the tools. All text behind `most_calls` calls is dropped."""
        self._form = form
        self._names = names
        self._most = most_calls
        self._source = Characters()
        self._told: list[Part] = []
        # Calls that were told.
        self.calls = 0
        self._said = False
        self._steps = self._all()
        next(self._steps)

    def push(self, text: str) -> list[Part]:
        """The parts that are certain with this text."""
        for char in text:
            self._steps.send(char)
        return self._taken()

    def flush(self) -> list[Part]:
        """The rest: the text is at its end."""
        held = self._source.taken()
        if not self._full and (held.strip(SPACE) or not self.calls):
            self._say(held)
        return self._taken()

    def begin(self, name: str) -> None:
        """Tell of a call."""
        self._told.append(CallBegan(self.calls, name))
        self.calls += 1

    def argue(self, text: str) -> None:
        """Tell more of the last call's arguments."""
        self._told.append(CallArguments(self.calls - 1, text))

    @property
    def _full(self) -> bool:
        return self.calls == self._most

    def _taken(self) -> list[Part]:
        told, self._told = self._told, []
        return joined(told)

    def _say(self, text: str) -> None:
        if text:
            self._said = True
            self._told.append(Said(text))

    def _all(self) -> Reading[None]:
        """Read to the text's end, which never comes: the caller stops."""
        source = self._source
        while True:
            try:
                first = yield from self._until_calls()
                yield from self._read_calls(first)
            except MalformedError:
                # The last character may begin something.
                held = source.taken()
                self._say(held[:-1])
                source.read_again(held[-1:])
            while self._full:
                yield from source.next()
                source.taken()

    def _until_calls(self) -> Reading[str]:
        """Say content up to where calls may begin; returns the first character of them.

        Spaces and what may be an opening stay held.
        """
        source, form = self._source, self._form
        while True:
            char = yield from source.solid()
            if form.bare and not self._said and (char == "{" or (char == "[" and form.listed)):
                return char
            if form.opening.startswith(char) and (yield from source.is_next(form.opening[1:])):
                return (yield from source.solid())
            self._say(source.taken())

    def _read_calls(self, first: str) -> Reading[None]:
        """Read one call or a list, and what closes it. Raises `MalformedError`."""
        source, form = self._source, self._form
        if first == "[" and form.listed:
            yield from self._read_list()
        elif first == "{":
            yield from read_object(source, self, self._names)
        elif form.name_first:
            yield from self._read_named(first)
        else:
            raise MalformedError
        if not self._full:
            yield from self._pass_closing()

    def _read_list(self) -> Reading[None]:
        source = self._source
        while True:
            if (yield from source.solid()) != "{":
                raise MalformedError
            yield from read_object(source, self, self._names)
            if self._full:
                return
            char = yield from source.solid()
            if char == "]":
                source.taken()
                return
            if char != ",":
                raise MalformedError

    def _read_named(self, char: str) -> Reading[None]:
        """`NAME{...}`, with `[CALL_ID]ID` and `[ARGS]` between them or not, as later Mistral models write."""
        source, name = self._source, ""
        while char in _IN_NAMES:
            name += char
            char = yield from source.next()
        if name not in self._names:
            raise MalformedError
        while char == "[":
            tag = ""
            while (char := (yield from source.next())) != "]":
                tag += char
            if tag not in ("ARGS", "CALL_ID"):
                raise MalformedError
            char = yield from source.solid()
            while tag == "CALL_ID" and char in _IN_NAMES:
                char = yield from source.next()
        yield from read_arguments(source, self, name, char)

    def _pass_closing(self) -> Reading[None]:
        """Pass over what closes or separates calls, if it comes next; other text stays to be read."""
        source, form = self._source, self._form
        for mark in (form.closing, form.separator):
            if not mark:
                continue
            char = yield from source.solid()
            if char == mark[0] and (yield from source.is_next(mark[1:])):
                source.taken()
            else:
                source.read_again(source.taken())
