"""What one session brings ends that session at most: the real engine, and failures that are real."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.engine_loop import EngineLoop, Running, generate, loaded
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from tests.waiting import wait_until
from verifier_svc import compute
from verifier_svc.drafting import Drafting
from verifier_svc.scheduler import StepLimits
from verifier_svc.sessions import Session, SessionTable
from verifier_svc.standing import HARMFUL_TREES
from verifier_svc.step import SessionStep, StepLoop, engine_thread

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
    """A step loop, and what came of its sessions."""

    def __init__(
        self, loop: StepLoop, got: dict[str, list[int]], faults: dict[str, str], harmful: list[int]
    ) -> None:
        self.loop = loop
        self.got = got
        self.faults = faults
        # Streams whose trees were to blame.
        self.harmful = harmful

    def add(self, name: str, prompt: Sequence[int], sampling: SamplingParams | None = None) -> Session:
        made = Session(
            key=SessionKey(name, 1),
            prompt_length=len(prompt),
            token_ids=list(prompt),
            sampling=sampling or SamplingParams(max_tokens=TOKENS),
            length_limit=len(prompt) + TOKENS,
            drafting=Drafting(stream_id=STREAMS.get(name, 9)),
        )
        with self.loop.table.lock:
            self.loop.table.add(made)
            self.loop.table.lock.notify_all()
        return made

    def has_ended(self, *names: str) -> Callable[[], bool]:
        return lambda: all(len(self.got.get(name, ())) == TOKENS or name in self.faults for name in names)


@contextmanager
def world(decoder: Decoder, *, offer: TokenTree | None = None) -> Iterator[World]:
    """`offer`: a tree that comes for session "b" after each of its steps, past the checks at the door.

    The others have sound ones then.
    """
    got: dict[str, list[int]] = {}
    faults: dict[str, str] = {}
    harmful: list[int] = []

    def deliver(steps: list[SessionStep]) -> None:
        for step in steps:
            got.setdefault(step.key.session_id, []).extend(step.outcome.token_ids)
            session = loop.table.get(step.key.session_id)
            if offer is not None and session is not None:
                with loop.table.lock:
                    loop.offer_tree(
                        session, session.length, offer if session.drafting.stream_id == 2 else SOUND
                    )

    with engine_thread() as engine:
        failed = threading.Event()
        loop = StepLoop(
            decoder,
            SessionTable(9),
            engine,
            blocks=16,
            prefix_cache=True,
            limits=StepLimits(block_size=BLOCK_SIZE, prefill_rows=32, max_tree_nodes=16),
            draft_rows=8,
            max_draft_wait=0.0,
            divergence_interval=0,
            feedback_top_k=lambda _: 0,
            deliver=deliver,
            on_fault=lambda session, why: faults.update({session.key.session_id: why}),
            on_harm=harmful.append,
            on_failure=failed.set,
        )
        loop.start()
        try:
            yield World(loop, got, faults, harmful)
        finally:
            loop.stop()


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
        monkeypatch.setattr(compute, "decide", broken)
        made.add("a", PROMPTS["a"])
        made.add("b", PROMPTS["b"])
        await wait_until(lambda: made.loop.failure is not None, "it has failed", 60)
        # They go on at another verifier.
        assert not made.faults
