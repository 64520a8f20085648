"""What does not fit the model is refused with OpenAI's code and the field's name at the face asked."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import RequestError
from gateway.generation import Form, Generation
from gateway.request import Handling, Terms
from gateway.routing.views import VerifierView
from paceline.sampling import SamplingRequest

SERVED = VerifierView("pod:1", True, False, "m", vocab_size=100, max_context=10, sessions=0, max_sessions=1)


def asked(prompt_ids: tuple[int, ...], **given: Any) -> Generation:
    terms = Terms(
        SamplingRequest(**given), SERVED, frozenset({2}), Form(), "messages", "max_completion_tokens"
    )
    made = terms.ask(prompt_ids)
    assert isinstance(made, Generation)
    return made


@pytest.mark.parametrize(
    ("prompt_ids", "given", "code", "param"),
    [
        ((), {}, "invalid_value", "messages"),
        ((1, 100), {}, "invalid_value", "messages"),
        ((1,) * 10, {}, "context_length_exceeded", "messages"),
        ((1,) * 9, {"max_tokens": 2}, "context_length_exceeded", "max_completion_tokens"),
        ((1,), {"top_k": 101}, "integer_above_max_value", "top_k"),
        ((1,), {"min_tokens": 10}, "integer_above_max_value", "min_tokens"),
        ((1,), {"min_tokens": 3, "max_tokens": 2}, "integer_above_max_value", "min_tokens"),
        ((1,), {"stop_token_ids": (5, 100)}, "invalid_value", "stop_token_ids"),
        ((1,), {"allowed_token_ids": frozenset({100})}, "invalid_value", "allowed_token_ids"),
        ((1,), {"logit_bias": ((100, 1.0),)}, "invalid_value", "logit_bias"),
    ],
)
def test_what_does_not_fit_the_model_has_a_code_and_a_field(
    prompt_ids: tuple[int, ...], given: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        asked(prompt_ids, **given)
    assert (caught.value.kind.status, caught.value.kind.code, caught.value.param) == (400, code, param)


def test_what_just_fits_is_taken() -> None:
    made = asked((99,) * 9, top_k=100, min_tokens=1, stop_token_ids=(99,))
    assert (made.max_tokens, made.sampling.stop_token_ids) == (1, frozenset({2, 99}))
    assert asked((1,), ignore_eos=True).sampling.stop_token_ids == frozenset()


@pytest.mark.parametrize(
    ("kept", "keeps_end", "max_tokens", "prompt"),
    [
        (None, True, 2, (1, 2, 3, 4, 5, 6)),
        (2, True, 2, (5, 6)),
        (2, False, 2, (1, 2)),
        (9, True, 2, (1, 2, 3, 4, 5, 6)),
        (-1, True, 7, (4, 5, 6)),
        (-1, True, None, (1, 2, 3, 4, 5, 6)),
        (-1, False, 9, (1,)),
    ],
)
def test_a_prompt_is_cut_to_what_is_to_be_kept_of_it(
    kept: int | None, keeps_end: bool, max_tokens: int | None, prompt: tuple[int, ...]
) -> None:
    terms = Terms(
        SamplingRequest(max_tokens=max_tokens),
        SERVED,
        frozenset(),
        Form(),
        "prompt",
        handling=Handling(kept, keeps_end),
    )
    made = terms.ask((1, 2, 3, 4, 5, 6))
    assert isinstance(made, Generation)
    assert made.prompt_ids == prompt
