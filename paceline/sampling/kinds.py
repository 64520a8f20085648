"""Kinds of values that parameters have: their bounds, and what is said of a value that breaks one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Bound:
    """The values that a number may have: from `low` to `high`, both included."""

    low: int | float
    # None leaves it to the type of the number's field.
    high: int | float | None = None
    low_excluded: bool = False

    def problem(self, value: float) -> str | None:
        """What is wrong with `value`, said without the field's name; None where nothing is."""
        # Written so that NaN fails.
        above_low = self.low < value if self.low_excluded else self.low <= value
        if self.high is None:
            return None if above_low else f"must be at least {self.low:g}"
        if above_low and value <= self.high:
            return None
        return f"must be in {self}, got {value:g}"

    def __str__(self) -> str:
        if self.high is None:
            return f"at least {self.low:g}"
        return f"{'(' if self.low_excluded else '['}{self.low:g}, {self.high:g}]"


class Kind(Protocol):
    """What values a parameter may have."""

    def problem(self, value: Any, vocab_size: int | None = None) -> str | None:
        """What is wrong with `value`, said without the parameter's name; None where nothing is.

        Without `vocab_size` what any model would refuse.
        """

    def plain(self, value: Any) -> Any:
        """The value as JSON holds it."""

    def read(self, plain: Any) -> Any:
        """The value that `plain` made this of. Raises `TypeError` or `ValueError` for something else."""

    def __str__(self) -> str:
        """The bounds, for people."""


class _Scalar:
    """A value that JSON holds as it is."""

    __slots__ = ()

    def plain(self, value: Any) -> Any:
        return value

    def read(self, plain: Any) -> Any:
        return plain


@dataclass(frozen=True, slots=True)
class Number(_Scalar):
    """A real number."""

    bound: Bound

    def problem(self, value: float, vocab_size: int | None = None) -> str | None:
        return self.bound.problem(value)

    def __str__(self) -> str:
        return str(self.bound)


@dataclass(frozen=True, slots=True)
class Integer(_Scalar):
    """An integer; `of_vocabulary`: a number of tokens of the vocabulary, at most all."""

    bound: Bound
    of_vocabulary: bool = False

    def problem(self, value: int, vocab_size: int | None = None) -> str | None:
        if self.of_vocabulary and vocab_size is not None and value > vocab_size:
            return f"is at most the vocabulary's {vocab_size}, got {value}"
        return self.bound.problem(value)

    def __str__(self) -> str:
        return str(self.bound) if self.bound.high is None or self.bound.high < 2**53 else "any"


@dataclass(frozen=True, slots=True)
class Flag(_Scalar):
    """True or false."""

    def problem(self, value: bool, vocab_size: int | None = None) -> str | None:
        return None

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True, slots=True)
class Ids:
    """A set of token ids."""

    most: int

    def problem(self, value: Collection[int], vocab_size: int | None = None) -> str | None:
        if len(value) > self.most:
            return f"takes at most {self.most} ids"
        return _foreign(value, vocab_size)

    def plain(self, value: Iterable[int]) -> list[int]:
        return sorted(value)

    def read(self, plain: Iterable[int]) -> frozenset[int]:
        return frozenset(plain)

    def __str__(self) -> str:
        return f"up to {self.most:,} ids"


@dataclass(frozen=True, slots=True)
class Texts:
    """Strings, none of them empty."""

    most: int
    most_characters: int

    def problem(self, value: Sequence[str], vocab_size: int | None = None) -> str | None:
        if len(value) > self.most or any(not 1 <= len(each) <= self.most_characters for each in value):
            return f"takes at most {self.most} strings of 1 to {self.most_characters} characters"
        return None

    def plain(self, value: Iterable[str]) -> list[str]:
        return list(value)

    def read(self, plain: Iterable[str]) -> tuple[str, ...]:
        return tuple(plain)

    def __str__(self) -> str:
        return f"up to {self.most} strings of 1 to {self.most_characters} characters"


@dataclass(frozen=True, slots=True)
class Biases:
    """A number for each of some token ids: pairs of both, the lowest id first."""

    most: int
    bound: Bound

    def problem(self, value: Sequence[tuple[int, float]], vocab_size: int | None = None) -> str | None:
        if len(value) > self.most:
            return f"takes at most {self.most} ids"
        for token, number in value:
            if (wrong := self.bound.problem(number)) is not None:
                return f"of id {token} {wrong}"
        return _foreign([token for token, _ in value], vocab_size)

    def plain(self, value: Iterable[tuple[int, float]]) -> list[list[int | float]]:
        return [[token, number] for token, number in value]

    def read(self, plain: Iterable[Sequence[int | float]]) -> tuple[tuple[int, float], ...]:
        return tuple(sorted((int(token), float(number)) for token, number in plain))

    def __str__(self) -> str:
        return f"up to {self.most:,} ids, each with a number in {self.bound}"


@dataclass(frozen=True, slots=True)
class IdLists:
    """Sequences of token ids, none of them empty."""

    most: int
    most_ids: int

    def problem(self, value: Sequence[Sequence[int]], vocab_size: int | None = None) -> str | None:
        if len(value) > self.most or any(not 1 <= len(each) <= self.most_ids for each in value):
            return f"takes at most {self.most} sequences of 1 to {self.most_ids} ids"
        return next((wrong for each in value if (wrong := _foreign(each, vocab_size)) is not None), None)

    def plain(self, value: Iterable[Iterable[int]]) -> list[list[int]]:
        return [list(each) for each in value]

    def read(self, plain: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(each) for each in plain)

    def __str__(self) -> str:
        return f"up to {self.most} sequences of 1 to {self.most_ids} ids"


def _foreign(ids: Iterable[int], vocab_size: int | None) -> str | None:
    if vocab_size is None:
        return None
    for index, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            return f"id {token} at index {index} is not in the vocabulary of {vocab_size}"
    return None
