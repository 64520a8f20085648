"""Who may speak to a verifier, and which vocabularies are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.net.handshake import (
    MAX_DRAFTER_ID,
    MAX_FEEDBACK_TOP_K,
    MAX_SOURCES,
    PROTOCOL_VERSION,
    HandshakeError,
    check_hello,
    vocab_fingerprint,
)

VOCABULARIES = st.lists(st.text(max_size=5), unique=True, max_size=20).map(
    lambda tokens: {token: index for index, token in enumerate(tokens)}
)
FITTING = {
    "protocol_version": PROTOCOL_VERSION,
    "drafter_id": "drafter-0",
    "feedback_top_k": MAX_FEEDBACK_TOP_K,
    "vocab_fingerprint": "aa",
    "served_fingerprint": "aa",
}


def test_a_drafter_of_the_same_release_and_vocabulary_may_speak() -> None:
    check_hello(**FITTING)  # type: ignore[arg-type]


def test_a_drafter_may_name_its_sources() -> None:
    check_hello(**FITTING, sources=[f"s-{number}_" for number in range(MAX_SOURCES)])  # type: ignore[arg-type]


def test_a_drafter_that_only_copies_ids_fits_any_vocabulary() -> None:
    check_hello(**{**FITTING, "vocab_fingerprint": ""})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("protocol_version", PROTOCOL_VERSION + 1, "protocol version 2 is not spoken here, only 1"),
        ("protocol_version", 0, "run drafter and verifier of the same release"),
        ("drafter_id", "", "1 to 128 characters, got 0"),
        ("drafter_id", "x" * (MAX_DRAFTER_ID + 1), "got 129"),
        ("feedback_top_k", MAX_FEEDBACK_TOP_K + 1, "at most 32, got 33"),
        ("vocab_fingerprint", "bb", "vocabulary bb is not the target's aa"),
        (
            "sources",
            [f"s{number}" for number in range(MAX_SOURCES + 1)],
            "different names, got 17",
        ),
        ("sources", ["text", "text"], "at most 16 different names"),
        ("sources", ["text", ""], "1 to 32 characters of a-z 0-9 _ -"),
        ("sources", ["x" * 33], "1 to 32 characters of a-z 0-9 _ -"),
        ("sources", ["Text\n"], "1 to 32 characters of a-z 0-9 _ -"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(field: str, value: object, message: str) -> None:
    with pytest.raises(HandshakeError, match=message):
        check_hello(**{**FITTING, field: value})  # type: ignore[arg-type]


@given(VOCABULARIES, VOCABULARIES)
def test_fingerprints_agree_exactly_when_vocabularies_do(one: dict[str, int], other: dict[str, int]) -> None:
    assert (vocab_fingerprint(one) == vocab_fingerprint(other)) == (one == other)
    assert vocab_fingerprint(one) == vocab_fingerprint(dict(reversed(one.items())))
    assert len(vocab_fingerprint(one)) == 32


def test_fingerprints_stay_what_they_are() -> None:
    # Tables that were written once are found by them: `drafter_svc/tables/`.
    assert vocab_fingerprint({"a": 0, "b": 1, "\u00e9": 2}) == "c195702de98bf78a7c28250354d86989"


def test_where_one_token_ends_and_the_next_begins_matters() -> None:
    assert vocab_fingerprint({"ab": 0, "c": 1}) != vocab_fingerprint({"a": 0, "bc": 1})
    assert vocab_fingerprint({"\ud800": 0}) != vocab_fingerprint({"?": 0})
