"""What one session brings ends that session at most: the real engine, and failures that are real."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.engine_loop import EngineLoop, Running, generate, loaded
from paceline.engine import engine
from paceline.engine.model import Decoder
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from tests.unit.verifier_svc.step_loops import LoopUnderTest, running_loop
from tests.waiting import wait_until
from verifier_svc.drafting import Drafting
from verifier_svc.progress import SessionStep
from verifier_svc.sessions import Session
from verifier_svc.standing import HARMFUL_TREES

TOKENS = 40
PROMPTS = {"a": [1, 5, 9], "b": [2, 6, 10, 14], "c": [3, 7]}
# A seed that is no number: drawing raises.
BAD = SamplingParams(max_tokens=TOKENS, temperature=0.5, seed="none")  # type: ignore[arg-type]
ENDLESS = TokenTree((7, 8), (-1, 0), (-math.inf, -1.0))
# A token that is none: rows cannot be made of it.
WORDY = TokenTree(("seven",), (-1,), (-1.0,))  # type: ignore[arg-type]
SOUND = TokenTree((7, 8), (-1, 0), (-0.5, -0.5))
STREAMS = {"a": 1, "b": 2, "c": 3}


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Iterator[Decoder]:
    with loaded(tiny_model) as made:
        yield made


@pytest.fixture(scope="module")
def texts(decoder: Decoder) -> dict[str, list[int]]:
    """What each prompt is continued by when it is alone."""
    texts = {}
    for name, prompt in PROMPTS.items():
        running = Running(list(prompt), len(prompt), SamplingParams(max_tokens=TOKENS))
        texts[name] = generate(EngineLoop.of(decoder, blocks=16), [running], TOKENS)[0]
    return texts


class World:
    """A step loop, and the tokens that its sessions got."""

    def __init__(self, tested: LoopUnderTest, got: dict[str, list[int]]) -> None:
        self.loop = tested.loop
        self.faults = tested.faults
        self.harmful = tested.harmful
        self.got = got
        self._tested = tested

    def add(self, name: str, prompt: Sequence[int], sampling: SamplingParams | None = None) -> None:
        self._tested.add(
            Session(
                key=SessionKey(name, 1),
                prompt_length=len(prompt),
                token_ids=list(prompt),
                sampling=sampling or SamplingParams(max_tokens=TOKENS),
                length_limit=len(prompt) + TOKENS,
                drafting=Drafting(stream_id=STREAMS.get(name, 9)),
            )
        )

    def has_ended(self, *names: str) -> Callable[[], bool]:
        return lambda: all(len(self.got.get(name, ())) == TOKENS or name in self.faults for name in names)


@contextmanager
def world(decoder: Decoder, *, offer: TokenTree | None = None) -> Iterator[World]:
    """`offer`: a tree that comes for session "b" after each of its steps, past the checks at the door.

    The others have sound ones then.
    """
    got: dict[str, list[int]] = {}

    def on_step(tested: LoopUnderTest, step: SessionStep) -> None:
        got.setdefault(step.key.session_id, []).extend(step.outcome.token_ids)
        session = tested.loop.table.get(step.key.session_id)
        if offer is not None and session is not None:
            tested.came(session, offer if session.drafting.stream_id == STREAMS["b"] else SOUND)

    with running_loop(decoder, on_step, prefix_cache=True) as tested:
        yield World(tested, got)


async def test_parameters_that_cannot_be_drawn_with_end_their_session(
    decoder: Decoder, texts: dict[str, list[int]]
) -> None:
    with world(decoder) as made:
        for name, prompt in PROMPTS.items():
            made.add(name, prompt)
        made.add("bad", [4, 8], BAD)
        await wait_until(made.has_ended(*PROMPTS, "bad"), "all have ended", 60)
        assert "cannot be computed" in made.faults.pop("bad")
        assert not made.faults
        assert made.got == texts
        assert made.loop.failure is None
        assert made.loop.allocator.free == made.loop.allocator.total


async def test_a_lone_session_at_fault_ends_and_the_next_is_served(
    decoder: Decoder, texts: dict[str, list[int]]
) -> None:
    with world(decoder) as made:
        made.add("bad", [4, 8], BAD)
        await wait_until(made.has_ended("bad"), "it has ended", 60)
        made.add("a", PROMPTS["a"])
        await wait_until(made.has_ended("a"), "the next has ended", 60)
        assert made.got == {"a": texts["a"]}


@pytest.mark.parametrize("tree", [ENDLESS, WORDY], ids=["in planning", "in computing"])
async def test_a_tree_that_a_step_fails_of_is_dropped_and_its_drafter_blamed(
    decoder: Decoder, texts: dict[str, list[int]], tree: TokenTree
) -> None:
    """Its session goes on, as all others do; no other drafter is blamed."""
    with world(decoder, offer=tree) as made:
        for name, prompt in PROMPTS.items():
            made.add(name, prompt)
        await wait_until(made.has_ended(*PROMPTS), "all have ended", 60)
        assert not made.faults
        assert made.got == texts
        assert len(made.harmful) >= HARMFUL_TREES
        assert set(made.harmful) == {STREAMS["b"]}


async def test_an_engine_that_computes_nothing_more_has_failed(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("as its test wants it")

    with world(decoder) as made:
        monkeypatch.setattr(engine, "decide", broken)
        made.add("a", PROMPTS["a"])
        made.add("b", PROMPTS["b"])
        await wait_until(lambda: made.loop.failure is not None, "it has failed", 60)
        # They go on at another verifier.
        assert not made.faults
