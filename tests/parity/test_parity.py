"""The matrix with the tiny model: drafts, company and deaths of verifiers change nothing that is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from tests.pace import Pace
from tests.parity.matrix import FEATURES, PROMPTS, SCHEMA, Case, cases
from tests.parity.play import WAYS, Matrix
from tests.pods import Pods


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    folder = tmp_path_factory.mktemp("parity")
    pace = Pace(folder / "pace")
    with (
        pytest.MonkeyPatch.context() as patch,
        # The tiny model's steps would be over before a tree comes.
        pace.steps_take(0.004),
        Pods(folder, tiny_model, redis_url, verifiers=2) as made,
    ):
        for name, value in pace.variables.items():
            patch.setenv(name, value)
        made.verifier_module = "tests.paced_verifier"
        yield made.start()


async def test_every_feature_on_every_path(pods: Pods) -> None:
    asked = [case for case in cases() if case.prompt == PROMPTS[0]]
    matrix = Matrix(pods)
    tally = await matrix.play(asked)
    assert tally.differing == []
    assert set(tally.played) == {(feature, way) for feature in FEATURES for way in WAYS}
    # It means something only where drafts were accepted, verifiers died, and a feature does something.
    assert tally.accepted_tokens > 100
    assert tally.kills > 1
    texts = {
        feature: [
            matrix.references[Case(feature, sampling, "no draft", PROMPTS[0])]["choices"]
            for sampling in ("greedy", "seeded")
        ]
        for feature in FEATURES
    }
    # Nothing ends the tiny model's text, so that ignoring its end says nothing.
    alike = [name for name in FEATURES if texts[name] == texts["nothing"]]
    assert set(alike) <= {"nothing", "ignore_eos", "min_tokens"}
    for each in texts["json_schema"]:
        if each[0]["finish_reason"] == "stop":
            jsonschema.validate(json.loads(each[0]["text"]), SCHEMA)
