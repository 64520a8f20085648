"""What both faces share between a validated request and its session: model, lengths, defaults."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.errors import CONTEXT_LENGTH, UNAVAILABLE, UNKNOWN_MODEL, RequestError, invalid
from gateway.generation import Asked, Form, Generation
from gateway.prompt import Prompt
from gateway.router import VerifierView
from paceline.sampling import SamplingRequest

# Messages of a chat.
MAX_MESSAGES = 2048
# What a prompt is charged by until it is tokenised.
_CHARACTERS_PER_TOKEN = 4
# JSON's numbers are doubles in JavaScript: more bits would come back rounded.
_SEED_BITS = 53


def served_model(verifiers: list[VerifierView], model_name: str, asked: str) -> VerifierView:
    """A verifier that tells the model's limits. Raises `RequestError` for another model, or none up."""
    if asked not in ("", model_name):
        raise RequestError(
            UNKNOWN_MODEL, f"the model {asked!r} does not exist; {model_name!r} is served", "model"
        )
    serving = [pod for pod in verifiers if pod.model_id == model_name and not pod.misfit]
    if not serving:
        raise RequestError(UNAVAILABLE, f"no verifier of {model_name!r} is up; try again later")
    return min(serving, key=lambda pod: (not pod.healthy, pod.max_context))


@dataclass(frozen=True, slots=True)
class Terms:
    """What a continuation of a prompt is to keep to, and what its face calls the fields at fault."""

    asked: SamplingRequest
    served: VerifierView
    # Ids that end a text of this model.
    stop_token_ids: frozenset[int]
    form: Form
    prompt_field: str
    max_tokens_field: str = "max_tokens"

    def ask(self, prompt: Prompt | tuple[int, ...]) -> Generation | Asked:
        """What is asked for. A long prompt is tokenised only when its key's limits have let it in.

        Raises `RequestError` as far as it is known that it does not fit the model.
        """
        if isinstance(prompt, tuple):
            return self.generation(prompt)
        if prompt.short:
            with _naming(self.prompt_field):
                prompt_ids = prompt.ids()
            return self.generation(prompt_ids)
        context = self.served.max_context

        async def in_turn(holder: str, until: float) -> Generation:
            with _naming(self.prompt_field):
                prompt_ids = await prompt.ids_in_turn(context, holder, until)
            return self.generation(prompt_ids)

        with _naming(self.prompt_field):
            prompt.check(context)
        expected = min(prompt.characters // _CHARACTERS_PER_TOKEN, context)
        return Asked(self.form, expected, self.asked.max_tokens or context, in_turn)

    def generation(self, prompt_ids: tuple[int, ...]) -> Generation:
        """The session to run. Raises `RequestError` for a prompt or length that does not fit the model."""
        asked, served = self.asked, self.served
        max_tokens = self._max_tokens(prompt_ids)
        _check_limits(asked, served.vocab_size, max_tokens, self.max_tokens_field)
        sampling = asked.params(
            max_tokens,
            prompt_tokens=len(prompt_ids),
            seed=secrets.randbits(_SEED_BITS),
            model_stop_ids=self.stop_token_ids,
        )
        stops = tuple(asked.stop)
        return Generation(served.model_id, prompt_ids, sampling, stops, asked.speculation, self.form)

    def _max_tokens(self, prompt_ids: tuple[int, ...]) -> int:
        """Tokens of the answer at the most, of a prompt that fits."""
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
    """Raises `RequestError` where a parameter goes beyond the model's vocabulary or its own length."""
    if asked.top_k is not None and asked.top_k > vocab_size:
        raise RequestError(
            invalid("integer_above_max_value"), f"top_k is at most the vocabulary's {vocab_size}", "top_k"
        )
    if asked.min_tokens > max_tokens:
        raise RequestError(
            invalid("integer_above_max_value"),
            f"min_tokens is at most {max_tokens_field}'s {max_tokens}",
            "min_tokens",
        )
    if asked.stop_token_ids and max(asked.stop_token_ids) >= vocab_size:
        raise _foreign(max(asked.stop_token_ids), vocab_size, "stop_token_ids")


def _foreign(token: int, vocab_size: int, field: str) -> RequestError:
    return RequestError(
        invalid("invalid_value"), f"token {token} is not in the vocabulary of {vocab_size}", field
    )


@contextmanager
def _naming(prompt_field: str) -> Iterator[None]:
    """A prompt does not know what its face calls it."""
    try:
        yield
    except RequestError as error:
        if error.param is None and error.kind.status == 400:
            error.param = prompt_field
        raise
