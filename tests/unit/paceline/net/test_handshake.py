"""Who may speak to a verifier."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paceline.features import MAX_LAYERS, MAX_REQUESTS, MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, FeatureRequest
from paceline.net.handshake import (
    MAX_DRAFTER_ID,
    MAX_FEEDBACK_TOP_K,
    MAX_SOURCES,
    PROTOCOL_VERSION,
    SPOKEN_VERSIONS,
    HandshakeError,
    Hello,
    check_hello,
)

WEIGHTS, OTHERS = "0123456789abcdef" * 2, "f" * 32
LAYERS = 12
WANTED = FeatureRequest((0, 5, LAYERS), MIN_WINDOW_BYTES, WEIGHTS)
FITTING = Hello(
    PROTOCOL_VERSION,
    "drafter-0",
    vocab_fingerprint="aa",
    feedback_top_k=MAX_FEEDBACK_TOP_K,
    features=(WANTED,),
    sources=("text", "eagle_3-x"),
)


def check(hello: Hello) -> None:
    check_hello(hello, vocab_fingerprint="aa", weights_fingerprint=WEIGHTS, num_layers=LAYERS)


@pytest.mark.parametrize("version", SPOKEN_VERSIONS)
def test_a_drafter_of_the_same_vocabulary_may_speak(version: int) -> None:
    check(replace(FITTING, protocol_version=version))


def test_a_drafter_may_name_its_sources() -> None:
    check(replace(FITTING, sources=tuple(f"s-{number}_" for number in range(MAX_SOURCES))))


def test_a_drafter_that_only_copies_ids_fits_any_vocabulary() -> None:
    check(replace(FITTING, vocab_fingerprint=""))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("protocol_version", 3, "protocol version 3 is not spoken here, only 1 and 2"),
        ("protocol_version", 0, "run drafter and verifier of the same release"),
        ("drafter_id", "", "1 to 128 characters, got 0"),
        ("drafter_id", "x" * (MAX_DRAFTER_ID + 1), "got 129"),
        ("feedback_top_k", MAX_FEEDBACK_TOP_K + 1, "at most 32, got 33"),
        ("vocab_fingerprint", "bb", "vocabulary bb is not the target's aa"),
        ("features", (WANTED,) * (MAX_REQUESTS + 1), "features holds more than 8 requests"),
        ("sources", tuple(f"s{number}" for number in range(MAX_SOURCES + 1)), "more than 16 names"),
        ("sources", ("text", "text"), "holds a name twice"),
        ("sources", ("text", ""), "source 1 must have 1 to 32 characters of a-z 0-9 _ -"),
        ("sources", ("x" * 33,), "source 0 must have"),
        ("sources", ("Text",), "source 0 must have"),
        ("sources", ("text\n",), "source 0 must have"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(field: str, value: object, message: str) -> None:
    with pytest.raises(HandshakeError, match=message):
        check(replace(FITTING, **{field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layers", (), "must name 1 to 8 layers, not none"),
        ("layers", tuple(range(MAX_LAYERS + 1)), "must name 1 to 8 layers, not more"),
        ("layers", (5, 2), r"must ascend, got \[5, 2\]"),
        ("layers", (5, 5), r"must ascend, got \[5, 5\]"),
        ("layers", (0, LAYERS + 1), "asks for layer 13; the target's last one is 12"),
        ("window_bytes", MIN_WINDOW_BYTES - 1, "must be 65536 to 67108864, got 65535"),
        ("window_bytes", MAX_WINDOW_BYTES + 1, "got 67108865"),
        ("window_bytes", 0, "got 0"),
        ("weights_fingerprint", "abc", "empty or 32 hex digits"),
        ("weights_fingerprint", WEIGHTS.upper(), "empty or 32 hex digits"),
    ],
)
def test_a_request_for_states_that_breaks_a_bound_is_refused(field: str, value: object, message: str) -> None:
    broken = replace(WANTED, **{field: value})  # type: ignore[arg-type]
    for features in (broken,), (WANTED, broken):
        with pytest.raises(HandshakeError, match=message):
            check(replace(FITTING, features=features))


@pytest.mark.parametrize("weights", ["", WEIGHTS])
@pytest.mark.parametrize("window", [MIN_WINDOW_BYTES, MAX_WINDOW_BYTES])
def test_requests_for_states_may_go_up_to_their_bounds(weights: str, window: int) -> None:
    widest = FeatureRequest(tuple(range(LAYERS - MAX_LAYERS + 1, LAYERS + 1)), window, weights)
    check(replace(FITTING, features=(widest,) * MAX_REQUESTS))


def test_layers_of_another_model_are_not_counted_by_this_ones() -> None:
    check(replace(FITTING, features=(replace(WANTED, layers=(80,), weights_fingerprint=OTHERS), WANTED)))
    with pytest.raises(HandshakeError, match="layer 80"):
        check(replace(FITTING, features=(replace(WANTED, layers=(80,), weights_fingerprint=""),)))
