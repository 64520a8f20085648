"""The Hello says what all methods need together, and keeps to the wire's bounds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from drafter_svc.hello import WINDOW_BYTES, hello
from drafter_svc.methods.base import FeatureWant, Method, MethodFactory, Needs, Target
from paceline.features import MAX_LAYERS, MAX_REQUESTS
from paceline.net.handshake import Hello, check_hello


@dataclass
class Factory(MethodFactory):
    """A method that is never made."""

    name: str
    needs: Needs
    computes: bool = True
    weights: tuple[str, ...] = ()

    def create(self, target: Target) -> Method:
        raise AssertionError


def said(*needs: Needs) -> Hello:
    made = hello("d", [Factory(f"m{number}", each) for number, each in enumerate(needs)])
    check_hello(made, vocab_fingerprint=made.vocab_fingerprint, weights_fingerprint="a" * 32, num_layers=99)
    return made


def test_the_most_feedback_that_any_wants_is_asked_for() -> None:
    assert said(Needs(3), Needs(8), Needs()).feedback_top_k == 8


@pytest.mark.parametrize(
    ("vocabularies", "named"),
    [(("v", "v"), "v"), (("v", ""), ""), (("v", "w"), ""), (("",), "")],
    ids=["one", "one fits any", "two", "any"],
)
def test_a_vocabulary_is_named_where_no_method_fits_another(
    vocabularies: tuple[str, ...], named: str
) -> None:
    assert said(*(Needs(vocab_fingerprint=each) for each in vocabularies)).vocab_fingerprint == named


def test_methods_that_know_a_model_share_its_states() -> None:
    first, second = "a" * 32, "b" * 32
    made = said(
        Needs(features=(FeatureWant((2, 9), first), FeatureWant((1,), second))),
        Needs(features=(FeatureWant((5, 9), first),)),
    )
    assert [(each.layers, each.weights_fingerprint) for each in made.features] == [
        ((2, 5, 9), first),
        ((1,), second),
    ]
    assert {each.window_bytes for each in made.features} == {WINDOW_BYTES}


def test_what_is_wanted_beyond_the_bounds_is_left_out() -> None:
    models = tuple(FeatureWant((1, 2), f"{number:032x}") for number in range(MAX_REQUESTS + 3))
    layers = FeatureWant(tuple(range(3, 3 + MAX_LAYERS)), models[0].weights_fingerprint)
    made = said(Needs(features=models), Needs(features=(layers,)))
    assert len(made.features) == MAX_REQUESTS
    assert made.features[0].layers == (1, 2)
