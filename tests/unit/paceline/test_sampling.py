"""Sampling parameters: bounds, what is said where one is broken, and the defaults of what is not given."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from paceline.net import wire
from paceline.sampling import Bound, SamplingError, SamplingParams, SamplingRequest, parameters_of
from paceline.sampling.kinds import Biases, Ids, Integer, Number
from paceline.v1 import session_pb2

VOCAB = 100


@pytest.mark.parametrize(
    ("bound", "value", "problem"),
    [
        (Bound(0, 1), 0.0, None),
        (Bound(0, 1), 1.0, None),
        (Bound(0, 1), 1.5, "must be in [0, 1], got 1.5"),
        (Bound(0, 1), -1.0, "must be in [0, 1], got -1"),
        (Bound(0, 1), math.nan, "must be in [0, 1], got nan"),
        (Bound(0, 1, low_excluded=True), 0.0, "must be in (0, 1], got 0"),
        (Bound(1), 2**40, None),
        (Bound(1), 0, "must be at least 1"),
    ],
)
def test_a_bound_says_what_is_wrong(bound: Bound, value: float, problem: str | None) -> None:
    assert bound.problem(value) == problem


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 100.5}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"min_p": math.nan}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ("a",) * 5}, "stop"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("a" * 257,)}, "stop"),
        ({"stop_token_ids": (1,) * 33}, "stop_token_ids"),
    ],
)
def test_a_request_outside_its_bounds_is_refused_by_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(SamplingError) as caught:
        SamplingRequest(**given).check()
    assert caught.value.field == field


def test_what_is_not_given_takes_the_default() -> None:
    request = SamplingRequest()
    request.check()
    params = request.params(7, prompt_tokens=3, seed=5, model_stop_ids=frozenset({2}))
    assert params == SamplingParams(7, temperature=1.0, seed=5, stop_token_ids=frozenset({2}))


def test_what_is_given_is_kept() -> None:
    request = SamplingRequest(
        temperature=0.0, seed=0, stop_token_ids=(9,), ignore_eos=True, min_tokens=4, top_k=3, min_p=0.5
    )
    params = request.params(7, prompt_tokens=3, seed=5, model_stop_ids=frozenset({2}))
    assert params == SamplingParams(7, top_k=3, min_p=0.5, stop_token_ids=frozenset({9}), stop_from=3 + 4)


@pytest.mark.parametrize("top_p", [0.0, 5e-324, 1e-40])
def test_the_smallest_top_p_is_above_zero_on_the_wire_too(top_p: float) -> None:
    params = SamplingRequest(top_p=top_p).params(1, prompt_tokens=1, seed=1, model_stop_ids=frozenset())
    message = session_pb2.SamplingParams.FromString(wire.sampling_to_proto(params).SerializeToString())
    assert wire.sampling_from_proto(message, vocab_size=VOCAB) == params
    assert params.top_p > 0


@pytest.mark.parametrize("low", [True, False])
def test_whatever_a_client_may_ask_for_a_session_may_be_drawn_with(low: bool) -> None:
    given: dict[str, Any] = {}
    for each in parameters_of(SamplingRequest):
        if isinstance(each.kind, Number | Integer) and each.kind.bound.high is not None:
            bound = each.kind.bound
            given[each.name] = bound.high if not low else 5e-324 if bound.low_excluded else bound.low
        elif isinstance(each.kind, Ids):
            given[each.name] = range(each.kind.most)
        elif isinstance(each.kind, Biases):
            biases = each.kind.bound.low if low else each.kind.bound.high
            given[each.name] = tuple((token, biases) for token in range(each.kind.most))
    request = SamplingRequest(**given)
    request.check()
    params = request.params(
        1,
        prompt_tokens=1,
        seed=1,
        model_stop_ids=frozenset(range(32, 64)),
        bad_words=((5,) * 512,) * 256,
    )
    params.check(4096)


def test_a_record_holds_all_that_differs_from_the_defaults() -> None:
    params = SamplingParams(
        9,
        temperature=0.7,
        top_k=3,
        seed=2**64 - 1,
        stop_token_ids=frozenset({5, 4}),
        logit_bias=((3, 1.5), (7, -100.0)),
        bad_words=((1, 2), (3,)),
    )
    assert SamplingParams.read(json.loads(json.dumps(params.plain()))) == params
    # As an earlier version wrote it.
    assert SamplingParams.read({"max_tokens": 9, "stop_token_ids": [1]}) == SamplingParams(
        9, stop_token_ids=frozenset({1})
    )


@pytest.mark.parametrize("plain", [5, [1], {"max_tokens": 1, "stop_token_ids": 5}, {"unheard": 1}, {}])
def test_what_is_no_record_is_refused(plain: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        SamplingParams.read(plain)


def test_a_session_keeps_no_more_tokens_than_there_are() -> None:
    SamplingParams(1, top_k=VOCAB).check(VOCAB)
    with pytest.raises(SamplingError, match="is at most the vocabulary's 100, got 101") as caught:
        SamplingParams(1, top_k=VOCAB + 1).check(VOCAB)
    assert caught.value.field == "top_k"
