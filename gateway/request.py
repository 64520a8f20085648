"""What both faces share between a validated request and its session: model, lengths, defaults."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.errors import CONTEXT_LENGTH, INVALID, UNAVAILABLE, UNKNOWN_MODEL, RequestError
from gateway.generation import Asked, Form, Generation
from gateway.prompt import Prompt
from gateway.router import VerifierView
from paceline.session import SamplingParams

# What a prompt is charged by until it is tokenised.
_CHARACTERS_PER_TOKEN = 4
# JSON's numbers are doubles in JavaScript: more bits would come back rounded.
_SEED_BITS = 53


@dataclass(frozen=True, slots=True)
class Wishes:
    """A client's parameters as given; None is "not given"."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    speculation: bool = True


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


def ask(
    prompt: Prompt | tuple[int, ...],
    wishes: Wishes,
    served: VerifierView,
    stop_token_ids: frozenset[int],
    *,
    prompt_field: str,
    max_tokens_field: str = "max_tokens",
    form: Form | None = None,
) -> Generation | Asked:
    """What is asked for. A long prompt is tokenised only when its key's limits have let it in.

    Raises `RequestError` as far as it is known that it does not fit the model.
    """

    def of(prompt_ids: tuple[int, ...]) -> Generation:
        return generation(
            prompt_ids,
            wishes,
            served,
            stop_token_ids,
            prompt_field=prompt_field,
            max_tokens_field=max_tokens_field,
            form=form,
        )

    if isinstance(prompt, tuple):
        return of(prompt)
    if prompt.short:
        return of(prompt.ids())

    async def in_turn(holder: str, until: float) -> Generation:
        with _naming(prompt_field):
            prompt_ids = await prompt.ids_in_turn(served.max_context, holder, until)
        return of(prompt_ids)

    with _naming(prompt_field):
        prompt.check(served.max_context)
    expected = min(prompt.characters // _CHARACTERS_PER_TOKEN, served.max_context)
    return Asked(form or Form(), expected, wishes.max_tokens or served.max_context, in_turn)


@contextmanager
def _naming(prompt_field: str) -> Iterator[None]:
    """A prompt does not know what its face calls it."""
    try:
        yield
    except RequestError as error:
        if error.kind is CONTEXT_LENGTH:
            error.param = prompt_field
        raise


def generation(
    prompt_ids: tuple[int, ...],
    wishes: Wishes,
    served: VerifierView,
    stop_token_ids: frozenset[int],
    *,
    prompt_field: str,
    max_tokens_field: str = "max_tokens",
    form: Form | None = None,
) -> Generation:
    """The session to run. Raises `RequestError` for a prompt or length that does not fit the model."""
    context = served.max_context
    if not prompt_ids:
        raise RequestError(INVALID, "the prompt is empty", prompt_field)
    room = context - len(prompt_ids)
    if room < 1:
        raise RequestError(
            CONTEXT_LENGTH,
            f"the prompt has {len(prompt_ids)} tokens, the model's context {context}; "
            "at least one must be left for the answer",
            prompt_field,
        )
    if max(prompt_ids) >= served.vocab_size:
        raise RequestError(
            INVALID, f"token {max(prompt_ids)} is not in the vocabulary of {served.vocab_size}", prompt_field
        )
    max_tokens = room if wishes.max_tokens is None else wishes.max_tokens
    if max_tokens > room:
        raise RequestError(
            CONTEXT_LENGTH,
            f"{max_tokens_field} {max_tokens} does not fit: the prompt has {len(prompt_ids)} tokens and the "
            f"model's context {context}, so at most {room} are left",
            max_tokens_field,
        )
    if wishes.top_k is not None and wishes.top_k > served.vocab_size:
        raise RequestError(INVALID, f"top_k is at most the vocabulary's {served.vocab_size}", "top_k")
    if wishes.min_tokens > max_tokens:
        raise RequestError(INVALID, f"min_tokens is at most {max_tokens_field}'s {max_tokens}", "min_tokens")
    if wishes.stop_token_ids and max(wishes.stop_token_ids) >= served.vocab_size:
        raise RequestError(
            INVALID,
            f"token {max(wishes.stop_token_ids)} is not in the vocabulary of {served.vocab_size}",
            "stop_token_ids",
        )
    stops = frozenset(wishes.stop_token_ids)
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if wishes.temperature is None else wishes.temperature,
        top_k=wishes.top_k or 0,
        top_p=1.0 if wishes.top_p is None else wishes.top_p,
        min_p=wishes.min_p or 0.0,
        seed=secrets.randbits(_SEED_BITS) if wishes.seed is None else wishes.seed,
        stop_token_ids=stops if wishes.ignore_eos else stops | stop_token_ids,
        stop_from=len(prompt_ids) + wishes.min_tokens if wishes.min_tokens else 0,
    )
    return Generation(served.model_id, prompt_ids, sampling, wishes.stops, wishes.speculation, form or Form())
