"""Which vocabularies are the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.vocabulary import vocab_fingerprint

VOCABULARIES = st.lists(st.text(max_size=5), unique=True, max_size=20).map(
    lambda tokens: {token: index for index, token in enumerate(tokens)}
)


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
