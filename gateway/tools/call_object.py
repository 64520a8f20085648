"""Reads a tool call that is written as one JSON object: `{"name": ..., "arguments": {...}}`."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Protocol

from gateway.characters import SPACE, Characters, MalformedError, Reading

# Llama's templates say "parameters".
_ARGUMENTS = ("arguments", "parameters")
# Members that some models add.
_PASSED_OVER = ("id", "type")
_CLOSING = {"{": "}", "[": "]"}


class Calls(Protocol):
    """Takes calls as they are read."""

    def begin(self, name: str) -> None:
        """A call is certain."""

    def argue(self, text: str) -> None:
        """More of the last call's arguments."""


def read_object(source: Characters, calls: Calls, names: Collection[str]) -> Reading[None]:
    """Read the members behind the object's `{`, to its `}`. Raises `MalformedError`.

    The call is told as soon as its name is known, which must be one of `names`, and its arguments have begun.
    The arguments then go out as they come, unchecked but for their brackets.
    """
    name, waiting, argued = None, "", False
    char = yield from source.solid()
    while True:
        key = yield from _string(source, char)
        if (yield from source.solid()) != ":":
            raise MalformedError
        char = yield from source.solid()
        if key == "name" and name is None:
            name = yield from _string(source, char)
            if name not in names:
                raise MalformedError
            if argued:
                _tell(source, calls, name, waiting)
            char = yield from source.solid()
        elif key in _ARGUMENTS and not argued:
            argued = True
            if name is None:
                waiting = yield from _kept(source, char)
            else:
                yield from read_arguments(source, calls, name, char)
            char = yield from source.solid()
        elif key in _PASSED_OVER:
            char = yield from _scalar(source, char)
        else:
            raise MalformedError
        if char == "}":
            break
        if char != ",":
            raise MalformedError
        char = yield from source.solid()
    if name is None:
        raise MalformedError
    if not argued:
        _tell(source, calls, name, "{}")
    source.taken()


def read_arguments(source: Characters, calls: Calls, name: str, first: str) -> Reading[None]:
    """Tell a call of `name`, and its arguments as they come: an object that begins with `first`.

    Raises `MalformedError`.
    """
    scan = _Brackets(first)
    _tell(source, calls, name, first)
    while scan.open:
        char = yield from source.next()
        scan.take(char)
        calls.argue(source.taken())


def _tell(source: Characters, calls: Calls, name: str, arguments: str) -> None:
    calls.begin(name)
    calls.argue(arguments)
    source.taken()


def _kept(source: Characters, first: str) -> Reading[str]:
    """An object's text."""
    scan, text = _Brackets(first), first
    while scan.open:
        char = yield from source.next()
        scan.take(char)
        text += char
    return text


class _Brackets:
    """Finds the end of a JSON object by its brackets, outside strings."""

    def __init__(self, first: str) -> None:
        if first != "{":
            raise MalformedError
        self._closings = ["}"]
        self._quoted = self._escaped = False

    @property
    def open(self) -> bool:
        return bool(self._closings)

    def take(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = char == "\\"
            self._quoted = char != '"'
        elif char == '"':
            self._quoted = True
        elif char in _CLOSING:
            self._closings.append(_CLOSING[char])
        elif char in "}]" and char != self._closings.pop():
            raise MalformedError


def _string(source: Characters, first: str) -> Reading[str]:
    """The string whose opening quote is `first`."""
    if first != '"':
        raise MalformedError
    text, escaped = first, False
    while True:
        char = yield from source.next()
        text += char
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            break
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        raise MalformedError from None


def _scalar(source: Characters, char: str) -> Reading[str]:
    """Pass over a string, a number or a word; returns what stands behind it."""
    if char == '"':
        yield from _string(source, char)
        return (yield from source.solid())
    if char in "{[":
        raise MalformedError
    while char not in ",}" and char not in SPACE:
        char = yield from source.next()
    return (yield from source.solid()) if char in SPACE else char
