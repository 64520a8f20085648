"""What both faces share between a validated request and its session: model, lengths, defaults."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from gateway.errors import CONTEXT_LENGTH, INVALID, UNAVAILABLE, UNKNOWN_MODEL, RequestError
from gateway.generation import Form, Generation
from gateway.router import VerifierView
from paceline.session import SamplingParams


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
    speculation: bool = True


def served_model(verifiers: list[VerifierView], model_name: str, asked: str) -> VerifierView:
    """A verifier that tells the model's limits. Raises `RequestError` for another model, or none up."""
    if asked not in ("", model_name):
        raise RequestError(
            UNKNOWN_MODEL, f"the model {asked!r} does not exist; {model_name!r} is served", "model"
        )
    serving = [pod for pod in verifiers if pod.model_id == model_name]
    if not serving:
        raise RequestError(UNAVAILABLE, f"no verifier of {model_name!r} is up; try again later")
    return min(serving, key=lambda pod: (not pod.healthy, pod.max_context))


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
    if max(prompt_ids) >= served.vocab_size:
        raise RequestError(
            INVALID, f"token {max(prompt_ids)} is not in the vocabulary of {served.vocab_size}", prompt_field
        )
    room = context - len(prompt_ids)
    if room < 1:
        raise RequestError(
            CONTEXT_LENGTH,
            f"the prompt has {len(prompt_ids)} tokens, the model's context {context}; "
            "at least one must be left for the answer",
            prompt_field,
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
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if wishes.temperature is None else wishes.temperature,
        top_k=wishes.top_k or 0,
        top_p=1.0 if wishes.top_p is None else wishes.top_p,
        min_p=wishes.min_p or 0.0,
        seed=secrets.randbits(63) if wishes.seed is None else wishes.seed,
        stop_token_ids=stop_token_ids,
    )
    return Generation(served.model_id, prompt_ids, sampling, wishes.stops, wishes.speculation, form or Form())
