"""A session whose parameters leave no token to draw ends by itself, and says why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.engine_loop import loaded
from paceline.engine.model import Decoder
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from tests.unit.verifier_svc.step_loops import LoopUnderTest, running_loop
from tests.waiting import wait_until
from verifier_svc.progress import SessionStep
from verifier_svc.sessions import Session

PROMPT = [5, 6, 7]
# Each of two ids may stand once behind either.
ONCE = SamplingParams(
    max_tokens=8, allowed_token_ids=frozenset({50, 60}), bad_words=((50, 50), (50, 60), (60, 50), (60, 60))
)


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Iterator[Decoder]:
    with loaded(tiny_model) as made:
        yield made


def _session(name: str, sampling: SamplingParams) -> Session:
    return Session(
        SessionKey(name, 1), len(PROMPT), list(PROMPT), sampling, len(PROMPT) + sampling.max_tokens
    )


async def _said(decoder: Decoder, *sessions: Session) -> tuple[dict[str, list[int]], dict[str, str]]:
    """What each session says, and why it was ended where it was."""
    said: dict[str, list[int]] = defaultdict(list)
    ended: set[str] = set()

    def on_step(_: LoopUnderTest, step: SessionStep) -> None:
        said[step.key.session_id] += step.outcome.token_ids
        if step.outcome.finish is not None:
            ended.add(step.key.session_id)

    with running_loop(decoder, on_step, prefix_cache=False) as tested:
        for session in sessions:
            tested.add(session)
        await wait_until(lambda: len(ended) + len(tested.faults) == len(sessions), "all sessions have ended")
        return said, tested.faults


async def test_it_ends_alone_behind_what_it_could_say(decoder: Decoder) -> None:
    plain = SamplingParams(max_tokens=8)
    expected, _ = await _said(decoder, _session("plain", plain))
    said, faults = await _said(decoder, _session("plain", plain), _session("once", ONCE))
    assert said["plain"] == expected["plain"]
    assert len(said["once"]) == 1
    assert list(faults) == ["once"]
    assert "leaves no token to draw" in faults["once"]
