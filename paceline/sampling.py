"""How a session's tokens are drawn: the parameters, their bounds, and what is said where one is broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

# A client may name so many ids that end a text; the model's own are added.
MAX_CLIENT_STOP_IDS: Final = 32
# All ids that end a text, the model's own among them.
MAX_STOP_IDS: Final = 64
MAX_STOPS: Final = 4
MAX_STOP_CHARACTERS: Final = 256
# The smallest top_p that single precision, which is the wire's, holds with all its bits. Whatever is smaller,
# 0 too, keeps the same one token.
SMALLEST_TOP_P: Final = 2.0**-126


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
        opening = "(" if self.low_excluded else "["
        return f"must be in {opening}{self.low:g}, {self.high:g}], got {value:g}"


# What a client may ask for.
CLIENT_BOUNDS: Final[Mapping[str, Bound]] = {
    "max_tokens": Bound(1),
    "temperature": Bound(0, 100),
    "top_k": Bound(0),
    "top_p": Bound(0, 1),
    "min_p": Bound(0, 1),
    # Each JSON library can carry it: it fits a signed integer of 64 bits.
    "seed": Bound(0, 2**63 - 1),
    "min_tokens": Bound(0),
}
# What a session may be drawn with.
SESSION_BOUNDS: Final[Mapping[str, Bound]] = {
    "max_tokens": CLIENT_BOUNDS["max_tokens"],
    "temperature": CLIENT_BOUNDS["temperature"],
    "top_p": Bound(0, 1, low_excluded=True),
    "min_p": CLIENT_BOUNDS["min_p"],
}


class SamplingError(ValueError):
    """A sampling parameter breaks a bound; the text does not name the parameter, `field` does."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the target's tokens are drawn. Fields are literal: 0 is not "default". See `session.proto`."""

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    # No id of `stop_token_ids` is drawn for a position below this one.
    stop_from: int = 0

    def check(self, vocab_size: int) -> None:
        """Raises `SamplingError` for a number outside `SESSION_BOUNDS`, or a top_k beyond the vocabulary."""
        _check(self, SESSION_BOUNDS)
        if self.top_k > vocab_size:
            raise SamplingError("top_k", f"is at most the vocabulary's {vocab_size}, got {self.top_k}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRequest:
    """A client's parameters as given; None is "not given"."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    # The text ends before the first of these.
    stop: Sequence[str] = ()
    # A generated id of these ends the text, beside the model's own.
    stop_token_ids: Sequence[int] = ()
    # The model's own ids that end a text do not end it.
    ignore_eos: bool = False
    # No stop id and no stop string ends the text before so many tokens.
    min_tokens: int = 0
    # Whether drafters may help; never changes the text.
    speculation: bool = True

    def check(self) -> None:
        """Raises `SamplingError` for what no model would take."""
        if len(self.stop) > MAX_STOPS or any(not 1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in self.stop):
            raise SamplingError(
                "stop", f"takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
            )
        if len(self.stop_token_ids) > MAX_CLIENT_STOP_IDS:
            raise SamplingError("stop_token_ids", f"takes at most {MAX_CLIENT_STOP_IDS} ids")
        _check(self, CLIENT_BOUNDS)

    def params(
        self, max_tokens: int, *, prompt_tokens: int, seed: int, model_stop_ids: frozenset[int]
    ) -> SamplingParams:
        """The session's parameters. What is not given takes OpenAI's default, the seed `seed`.

        `max_tokens` fits the model. The model ends a text with `model_stop_ids`.
        """
        stop_ids = frozenset(self.stop_token_ids)
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else max(self.top_p, SMALLEST_TOP_P),
            min_p=self.min_p or 0.0,
            seed=seed if self.seed is None else self.seed,
            stop_token_ids=stop_ids if self.ignore_eos else stop_ids | model_stop_ids,
            stop_from=prompt_tokens + self.min_tokens if self.min_tokens else 0,
        )


def _check(values: object, bounds: Mapping[str, Bound]) -> None:
    for name, bound in bounds.items():
        value = getattr(values, name)
        if value is not None and (problem := bound.problem(value)) is not None:
            raise SamplingError(name, problem)
