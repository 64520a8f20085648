"""From a validated request to its session, for both faces: model, lengths, defaults."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.choices import SEED_BITS
from gateway.errors import CONTEXT_LENGTH, UNAVAILABLE, UNKNOWN_MODEL, RequestError, invalid
from gateway.generation import Asked, Form, Generation
from gateway.prompt import Prompt
from gateway.routing.views import VerifierView
from paceline.logprobs import NO_LOGPROBS, LogprobsWanted, packed_width
from paceline.sampling import SamplingError, SamplingRequest
from paceline.session import NO_LIMITS, SpeculationLimits

# Most messages of a chat.
MAX_MESSAGES = 2048
# For a rough number of tokens before a prompt is tokenised.
_CHARACTERS_PER_TOKEN = 4
# Of a prompt's packed log-probabilities, which go in one message.
_MOST_SCORE_BYTES = 4 << 20


def served_model(verifiers: list[VerifierView], model_name: str, asked: str) -> VerifierView:
    """A verifier of the model, for its limits. Raises `RequestError` for another model, or if none is up."""
    if asked not in ("", model_name):
        raise RequestError(
            UNKNOWN_MODEL, f"the model {asked!r} does not exist; {model_name!r} is served", "model"
        )
    serving = [pod for pod in verifiers if pod.model_id == model_name and not pod.misfit]
    if not serving:
        raise RequestError(UNAVAILABLE, f"no verifier of {model_name!r} is up; try again later")
    return min(serving, key=lambda pod: (not pod.healthy, pod.max_context))


@dataclass(frozen=True, slots=True)
class Handling:
    """How a request is handled, whatever its continuation."""

    # Only so many of the prompt's tokens are kept, its last or its first ones; -1 keeps as many as fit.
    kept: int | None = None
    keeps_end: bool = True
    # As of `Generation`.
    priority: int = 0
    cache_salt: str = ""
    limits: SpeculationLimits = NO_LIMITS
    logprobs: LogprobsWanted = NO_LOGPROBS
    # The client's own guess at its answer.
    prediction: Prompt | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks of its continuation, and its face's names of fields for errors."""

    asked: SamplingRequest
    served: VerifierView
    # Ids that end a text of the model.
    stop_token_ids: frozenset[int]
    form: Form
    prompt_field: str
    max_tokens_field: str = "max_tokens"
    # Those of `asked`, as ids of the model.
    bad_words: tuple[tuple[int, ...], ...] = ()
    handling: Handling = Handling()

    def ask(self, prompt: Prompt | tuple[int, ...]) -> Generation | Asked:
        """The session, or for a long prompt a promise of it: it is tokenised after the request is admitted.

        Raises `RequestError` if it is clear already that the request does not fit the model.
        """
        guess, context = self.handling.prediction, self.served.max_context
        if (isinstance(prompt, tuple) or prompt.short) and (guess is None or guess.short):
            with _naming(self.prompt_field):
                prompt_ids = prompt if isinstance(prompt, tuple) else prompt.ids()
            with _naming("prediction"):
                return self.generation(prompt_ids, () if guess is None else guess.ids(context))
        limit = context if self.handling.kept is None else None

        async def in_turn(holder: str, until: float) -> Generation:
            with _naming(self.prompt_field):
                prompt_ids = (
                    prompt if isinstance(prompt, tuple) else await prompt.ids_in_turn(limit, holder, until)
                )
            with _naming("prediction"):
                guessed = () if guess is None else await guess.ids_in_turn(context, holder, until)
            return self.generation(prompt_ids, guessed)

        if limit is not None and not isinstance(prompt, tuple):
            with _naming(self.prompt_field):
                prompt.check(limit)
        if guess is not None:
            with _naming("prediction"):
                guess.check(context)
        characters = 0 if isinstance(prompt, tuple) else prompt.characters
        tokens = (
            len(prompt) if isinstance(prompt, tuple) else min(characters // _CHARACTERS_PER_TOKEN, context)
        )
        most = self.asked.max_tokens or context
        return Asked(self.form, tokens, most, in_turn, self.handling.priority, self.handling.logprobs)

    def generation(self, prompt_ids: tuple[int, ...], prediction_ids: tuple[int, ...] = ()) -> Generation:
        """The session to run. Raises `RequestError` if prompt or parameters do not fit the model."""
        asked, served = self.asked, self.served
        prompt_ids = self._kept(prompt_ids)
        max_tokens = self._max_tokens(prompt_ids)
        _check_limits(asked, served.vocab_size, max_tokens, self.max_tokens_field)
        sampling = asked.params(
            max_tokens,
            prompt_tokens=len(prompt_ids),
            seed=secrets.randbits(SEED_BITS),
            model_stop_ids=self.stop_token_ids,
            # Ids without a logit are never drawn.
            bad_words=tuple(ids for ids in self.bad_words if max(ids) < served.vocab_size),
        )
        _check_scores(self.handling.logprobs, len(prompt_ids))
        stops = tuple(asked.stop)
        return Generation(
            served.model_id,
            prompt_ids,
            sampling,
            stops,
            asked.speculation,
            self.form,
            self.handling.logprobs,
            prediction_ids,
            priority=self.handling.priority,
            cache_salt=self.handling.cache_salt,
            limits=self.handling.limits,
        )

    def _kept(self, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
        kept = self.handling.kept
        if kept is None:
            return prompt_ids
        if kept < 0:
            kept = max(1, self.served.max_context - (self.asked.max_tokens or 1))
        return prompt_ids[-kept:] if self.handling.keeps_end else prompt_ids[:kept]

    def _max_tokens(self, prompt_ids: tuple[int, ...]) -> int:
        """Most tokens of the answer. Raises `RequestError` if the prompt does not fit."""
        context, vocab_size = self.served.max_context, self.served.vocab_size
        if not prompt_ids:
            raise RequestError(invalid("invalid_value"), "the prompt is empty", self.prompt_field)
        room = context - len(prompt_ids)
        if room < 1:
            raise RequestError(
                CONTEXT_LENGTH,
                f"the prompt has {len(prompt_ids)} tokens, the model's context {context}; "
                "at least one must be left for the answer",
                self.prompt_field,
            )
        if max(prompt_ids) >= vocab_size:
            raise _foreign(max(prompt_ids), vocab_size, self.prompt_field)
        max_tokens = room if self.asked.max_tokens is None else self.asked.max_tokens
        if max_tokens > room:
            raise RequestError(
                CONTEXT_LENGTH,
                f"{self.max_tokens_field} {max_tokens} does not fit: the prompt has {len(prompt_ids)} tokens "
                f"and the model's context {context}, so at most {room} are left",
                self.max_tokens_field,
            )
        return max_tokens


def _check_limits(asked: SamplingRequest, vocab_size: int, max_tokens: int, max_tokens_field: str) -> None:
    """Raises `RequestError` if a parameter exceeds the vocabulary or `max_tokens`."""
    try:
        asked.check(vocab_size)
    except SamplingError as error:
        code = "integer_above_max_value" if error.field == "top_k" else "invalid_value"
        raise RequestError(invalid(code), f"{error.field} {error}", error.field) from None
    if asked.min_tokens > max_tokens:
        raise RequestError(
            invalid("integer_above_max_value"),
            f"min_tokens is at most {max_tokens_field}'s {max_tokens}",
            "min_tokens",
        )


def _check_scores(wanted: LogprobsWanted, prompt_tokens: int) -> None:
    """Raises `RequestError` where a prompt has too many log-probabilities for a message."""
    if wanted.prompt_top is None:
        return
    size = prompt_tokens * packed_width(wanted.prompt_top)
    if size > _MOST_SCORE_BYTES:
        raise RequestError(
            invalid("integer_above_max_value"),
            f"log-probabilities of a prompt of {prompt_tokens} tokens, with {wanted.prompt_top} of the "
            f"likeliest, are too many; {max(_MOST_SCORE_BYTES // prompt_tokens // 8 - 1, 0)} fit",
            "prompt_logprobs",
        )


def _foreign(token: int, vocab_size: int, field: str) -> RequestError:
    return RequestError(
        invalid("invalid_value"), f"token {token} is not in the vocabulary of {vocab_size}", field
    )


@contextmanager
def _naming(prompt_field: str) -> Iterator[None]:
    """Add the face's name of the prompt to errors about it."""
    try:
        yield
    except RequestError as error:
        if error.param is None and error.kind.status == 400:
            error.param = prompt_field
        raise
