"""The table of sampling parameters: what a client may ask for, and what a session is drawn with.

A parameter is a field of a class below, typed for whoever reads it, with its bounds and meaning beside it.
The HTTP schema, the OpenAPI document, both gRPC services, the records in Redis and the docs' table are made
from these fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Final, Self

from paceline.constraints.constraint import Constraint
from paceline.sampling.kinds import Biases, Bound, Flag, IdLists, Ids, Integer, Kind, Number, Texts

# The smallest top_p that single precision, which is the wire's, holds with all its bits. Whatever is smaller,
# 0 too, keeps the same one token.
SMALLEST_TOP_P: Final = 2.0**-126


class SamplingError(ValueError):
    """A sampling parameter breaks a bound; the text does not name the parameter, `field` does."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Parameter:
    """A line of the table. `default` is what is taken where nothing is given: it asks for nothing."""

    name: str
    kind: Kind
    default: Any
    # One or two sentences for docs, and for the schema of HTTP.
    meaning: str


_KIND, _MEANING = "kind", "meaning"
# In a record.
_CONSTRAINT = "constraint"


def _line(kind: Kind, meaning: str) -> dict[str, Any]:
    return {_KIND: kind, _MEANING: meaning}


def _parameter(kind: Kind, default: Any, meaning: str) -> Any:
    """A field that is a line of the table."""
    return field(default=default, metadata=_line(kind, meaning))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsParams:
    """What is done to a row's logits, said alike by a client and of a session."""

    temperature: float = _parameter(
        Number(Bound(0, 100)), 1.0, "0 takes the most likely token; larger values draw more freely."
    )
    top_k: int = _parameter(
        Integer(Bound(0), of_vocabulary=True), 0, "Keeps the k most likely tokens; 0 keeps all."
    )
    top_p: float = _parameter(
        Number(Bound(0, 1)),
        1.0,
        "Keeps the fewest most likely tokens whose probability reaches it; 1 keeps all, 0 one.",
    )
    min_p: float = _parameter(
        Number(Bound(0, 1)), 0.0, "Drops tokens less likely than so many times the most likely one."
    )

    typical_p: float = _parameter(
        Number(Bound(0, 1, low_excluded=True)),
        1.0,
        "Keeps the fewest tokens nearest to the expected information whose probability reaches it.",
    )
    presence_penalty: float = _parameter(
        Number(Bound(-2, 2)), 0.0, "Subtracted from the logits of tokens that were generated."
    )
    frequency_penalty: float = _parameter(
        Number(Bound(-2, 2)), 0.0, "Subtracted from a token's logit for each time that it was generated."
    )
    repetition_penalty: float = _parameter(
        Number(Bound(0.01, 100)),
        1.0,
        "Divides positive and multiplies negative logits of tokens of the prompt and of the text.",
    )
    logit_bias: tuple[tuple[int, float], ...] = _parameter(
        Biases(1024, Bound(-100, 100)), (), "Added to these tokens' logits."
    )
    allowed_token_ids: frozenset[int] = _parameter(
        Ids(4096), frozenset(), "Only these tokens may be drawn; without any, all."
    )

    def check(self, vocab_size: int | None = None) -> None:
        """Raises `SamplingError` for what no model would take, or none of a vocabulary of `vocab_size`."""
        for each in parameters_of(type(self)):
            value = getattr(self, each.name)
            if value is not None and (problem := each.kind.problem(value, vocab_size)) is not None:
                raise SamplingError(each.name, problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRequest(LogitsParams):
    """A client's parameters. What is not given is the default; None leaves it to the gateway."""

    max_tokens: int | None = _parameter(
        Integer(Bound(1)), None, "Most tokens to generate; without it up to the end of the context."
    )
    # Each JSON library can carry it: it fits a signed integer of 64 bits.
    seed: int | None = _parameter(
        Integer(Bound(0, 2**63 - 1)), None, "The same seed gives the same text; without it one is chosen."
    )
    stop: Sequence[str] = _parameter(Texts(4, 256), (), "The text ends before the first of these.")
    stop_token_ids: Sequence[int] = _parameter(Ids(32), (), "Ids that end the text, beside the model's own.")
    ignore_eos: bool = _parameter(Flag(), False, "The model's own stop ids do not end the text.")
    min_tokens: int = _parameter(
        Integer(Bound(0)), 0, "No stop id and no stop string ends the text before so many tokens."
    )
    bad_words: Sequence[str] = _parameter(
        Texts(128, 64), (), "What the text must not contain, at the beginning of a word or in its middle."
    )
    # Whether drafters may help; never changes the text.
    speculation: bool = True
    # What the text must be. It may end where that is complete, whatever `ignore_eos` says, and below
    # `min_tokens` where it cannot go on.
    constraint: Constraint | None = None

    def params(
        self,
        max_tokens: int,
        *,
        prompt_tokens: int,
        seed: int,
        model_stop_ids: frozenset[int],
        bad_words: tuple[tuple[int, ...], ...] = (),
    ) -> SamplingParams:
        """The session's parameters; the seed is `seed` where none is given.

        `max_tokens` fits the model, which ends a text with `model_stop_ids`. `bad_words` are this request's,
        as ids.
        """
        stop_ids = frozenset(self.stop_token_ids)
        if self.constraint is not None or not self.ignore_eos:
            stop_ids |= model_stop_ids
        alike = {each.name: getattr(self, each.name) for each in parameters_of(LogitsParams)}
        return SamplingParams(
            max_tokens,
            **{**alike, "top_p": max(self.top_p, SMALLEST_TOP_P)},
            seed=seed if self.seed is None else self.seed,
            stop_token_ids=stop_ids,
            stop_from=prompt_tokens + self.min_tokens if self.min_tokens else 0,
            bad_words=bad_words,
            constraint=self.constraint,
        )


@dataclass(frozen=True, slots=True)
class SamplingParams(LogitsParams):
    """How a session's tokens are drawn. Fields are literal: 0 is not "default". See `session.proto`."""

    max_tokens: int = field(metadata=_line(Integer(Bound(1)), "Most tokens to generate."))
    _: KW_ONLY
    temperature: float = _parameter(Number(Bound(0, 100)), 0.0, "As a client gives it.")
    top_p: float = _parameter(Number(Bound(0, 1, low_excluded=True)), 1.0, "As a client gives it, above 0.")
    seed: int = _parameter(Integer(Bound(0, 2**64 - 1)), 0, "Keys the noise of every position.")
    # The model's own among them, beside a client's.
    stop_token_ids: frozenset[int] = _parameter(Ids(64), frozenset(), "Ids that end the text.")
    stop_from: int = _parameter(
        Integer(Bound(0)), 0, "No id of stop_token_ids is drawn for a position below this one."
    )
    bad_words: tuple[tuple[int, ...], ...] = _parameter(
        IdLists(256, 512), (), "Sequences of ids that the text must not contain."
    )
    # What the text must be; ids of `stop_token_ids` end it where it is complete.
    constraint: Constraint | None = None

    def plain(self) -> dict[str, Any]:
        """All parameters as JSON holds them."""
        plain = {each.name: each.kind.plain(getattr(self, each.name)) for each in parameters_of(type(self))}
        if self.constraint is not None:
            plain[_CONSTRAINT] = self.constraint.plain()
        return plain

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Self:
        """What `plain` holds, the defaults where it holds nothing; raises `TypeError` or `ValueError`."""
        kinds = {each.name: each.kind for each in parameters_of(cls)}
        known = {
            name: kinds[name].read(value) if name in kinds else value for name, value in dict(plain).items()
        }
        if (constraint := known.get(_CONSTRAINT)) is not None:
            known[_CONSTRAINT] = Constraint.read(constraint)
        return cls(**known)


def parameters_of(kind: type[LogitsParams]) -> tuple[Parameter, ...]:
    """The lines of the table that a class has, in the order of its fields."""
    return tuple(
        Parameter(each.name, each.metadata[_KIND], each.default, each.metadata[_MEANING])
        for each in fields(kind)
        if _KIND in each.metadata
    )
