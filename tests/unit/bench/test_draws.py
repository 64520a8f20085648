"""What `paceline bench draws` times: each parameter that changes logits, at any vocabulary's size."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from bench.draws import asked, measure, table
from paceline.sampling import LogitsParams, SamplingParams, parameters_of
from tests.tiny import VOCAB

# Other filters have been there before.
FILTERS = {"temperature", "top_k", "top_p", "min_p"}


@pytest.mark.parametrize("vocab", [512, 151_936])
def test_each_parameter_is_timed_with_values_that_a_session_may_have(vocab: int) -> None:
    cases = asked(vocab)
    for fields in cases.values():
        SamplingParams(1, **fields).check(vocab)
    named = {name for fields in cases.values() for name in fields}
    assert named == {each.name for each in parameters_of(LogitsParams)} - FILTERS | {"bad_words"}


def test_a_measurement_has_each_case_with_and_without_a_temperature(tiny_model: Path) -> None:
    class Model:
        folder = tiny_model

    class Plan:
        model = Model()
        threads = 1

    document = asyncio.run(measure(cast("Any", Plan()), lambda *_: None, rounds=2))
    assert document["vocab_size"] == VOCAB
    assert len(document["cases"]) == 2 * len(asked(VOCAB))
    assert all(case["milliseconds_per_row"] > 0 for case in document["cases"])
    assert table(document).row_count == len(document["cases"])
