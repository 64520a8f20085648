"""Methods are called on one thread, in order and in batches, and a fault costs its session only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from drafter_svc.hypothesis import Hypothesis, Lesson
from drafter_svc.methods.base import (
    Ask,
    FeatureWant,
    Method,
    MethodFactory,
    Needs,
    Target,
    UnfitError,
    check_fit,
)
from drafter_svc.rounds import Counters, Message, Rounds, TreeLimits
from drafter_svc.runner import Runner
from drafter_svc.thread_runner import ThreadRunner
from paceline.features import FeatureGrant
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from tests.waiting import wait_until

TARGET = Target("m", "f", 9)
TREE = TokenTree((3,), (-1,), (-0.5,))
LESSON = Lesson(2, (), ())


def session(session_id: str) -> Hypothesis:
    return Hypothesis(SessionKey(session_id, 1), SamplingParams(max_tokens=9), [1, 2])


def ask(session_id: str) -> Ask:
    return Ask(session(session_id), 2, 8, 4)


class Recorder(Method):
    """A method that notes its calls, and raises for sessions whose names say so."""

    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.tree = TREE
        self.threads: set[int] = set()
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        self._note("draft")
        self.batches.append([ask.session.key.session_id for ask in asks])
        assert self.go.wait(30)
        assert "bad draft" not in self.batches[-1]
        return [self.tree] * len(asks)

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        self._note(f"observe {session.key.session_id}")
        assert session.key.session_id != "bad observe"

    def settle(self) -> bool:
        self._note("settle")
        raise RuntimeError("a settle that fails")

    def forget(self, session_id: str) -> None:
        self._note(f"forget {session_id}")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())


class Recorders(MethodFactory):
    """Makes recorders, or says why it does not."""

    name = "recorder"
    needs = Needs()
    computes = True
    weights = ()

    def __init__(self, unfit: str = "") -> None:
        self.method = Recorder()
        self._unfit = unfit

    def create(self, target: Target) -> Method:
        if self._unfit:
            raise UnfitError(self._unfit)
        self.method.threads.add(threading.get_ident())
        return self.method


@asynccontextmanager
async def computing(unfit: str = "") -> AsyncIterator[tuple[Recorder, ThreadRunner]]:
    factory, thread = Recorders(unfit), ThreadPoolExecutor(1)
    runner = ThreadRunner(factory, TARGET, thread)
    try:
        yield factory.method, runner
    finally:
        factory.method.go.set()
        runner.close()
        thread.shutdown()


def test_a_method_that_does_not_compute_is_called_at_once_where_it_is_asked() -> None:
    method = Recorder()
    runner = Runner(method)
    runner.observe(session("a"), LESSON)
    asked = ask("a")
    assert runner.draft_now([asked]) == [(asked, TREE)]
    assert runner.draft_now([]) == []
    runner.settle()
    runner.forget("a")
    assert method.calls == ["observe a", "draft", "settle", "forget a"]
    assert method.threads == {threading.get_ident()}


async def test_a_method_that_computes_has_a_thread_of_its_own_and_keeps_its_order() -> None:
    async with computing() as (method, runner):
        runner.observe(session("a"), LESSON)
        drafts = await runner.draft(lambda: [ask("a")])
        runner.settle()
        runner.forget("a")
        await wait_until(lambda: len(method.calls) == 4, "every call is made")
    assert [tree for _, tree in drafts] == [TREE]
    assert method.calls == ["observe a", "draft", "settle", "forget a"]
    assert len(method.threads) == 1
    assert threading.get_ident() not in method.threads


async def test_all_that_wait_while_a_batch_runs_make_the_next_batch() -> None:
    async with computing() as (method, runner):
        method.go.clear()
        first = runner.draft(lambda: [ask("a")])
        await wait_until(lambda: method.batches == [["a"]], "the first batch runs")
        asked: list[str] = []

        def late() -> list[Ask]:
            asked.append("b")
            return [ask("b"), ask("c")]

        later = [runner.draft(late)]
        gone = runner.draft(lambda: [ask("gone")])
        later.append(runner.draft(lambda: [ask("d")]))
        await asyncio.sleep(0)
        gone.cancel()
        assert not asked
        method.go.set()
        await first
        answers = await asyncio.gather(*later)
    assert method.batches == [["a"], ["b", "c", "d"]]
    names = [[asked.session.key.session_id for asked, _ in drafts] for drafts in answers]
    assert names == [["b", "c"], ["d"]]


FAULTY = ("a", "bad draft", "bad observe", "b")


def test_a_fault_costs_its_session_only() -> None:
    runner = Runner(Recorder())
    runner.observe(session("bad observe"), LESSON)
    runner.settle()
    asks = [ask(name) for name in FAULTY]
    drafts = runner.draft_now(asks)
    assert [tree for _, tree in drafts] == [TREE, None, None, TREE]
    assert [asked for asked, _ in drafts] == asks
    runner.forget("bad observe")
    assert [tree for _, tree in runner.draft_now([ask("bad observe")])] == [TREE]


async def test_a_fault_on_the_thread_costs_its_session_only() -> None:
    async with computing() as (_, runner):
        runner.observe(session("bad observe"), LESSON)
        drafts = await runner.draft(lambda: [ask(name) for name in FAULTY])
        assert [tree for _, tree in drafts] == [TREE, None, None, TREE]
        runner.forget("bad observe")
        drafts = await runner.draft(lambda: [ask("bad observe"), ask("bad draft")])
        assert [tree for _, tree in drafts] == [TREE, None]


@pytest.mark.parametrize(
    "tree",
    [
        TokenTree((3, 3), (-1, -1), (-0.5, -0.5)),
        TokenTree((TARGET.vocab_size,), (-1,), (-0.5,)),
        TokenTree((3,), (-1,), (0.5,)),
        TokenTree(tuple(range(9)), (-1,) * 9, (-0.5,) * 9),
    ],
    ids=["duplicate", "vocabulary", "confidence", "nodes"],
)
async def test_a_tree_that_breaks_a_rule_is_a_fault_of_its_method(tree: TokenTree) -> None:
    """The verifier would take it for the drafter's, and put the drafter aside."""
    async with computing() as (method, runner):
        method.tree = tree
        drafts = await runner.draft(lambda: [ask("a")])
    assert [drafted for _, drafted in drafts] == [None]


async def test_a_method_that_does_not_fit_says_why_and_drafts_nothing() -> None:
    async with computing("no weights for this model") as (method, runner):
        runner.attach(session("a"))
        drafts = await runner.draft(lambda: [ask("a")])
        assert runner.absent == "no weights for this model"
    assert [tree for _, tree in drafts] == [None]
    assert method.calls == []


@pytest.mark.parametrize(
    ("needs", "target", "why"),
    [
        (Needs(vocab_fingerprint="v"), TARGET, "vocabulary"),
        (Needs(features=(FeatureWant((1,), "w"),)), TARGET, "weights"),
        (Needs(features=(FeatureWant((1,)),)), TARGET, "--keep-states"),
        (
            Needs(features=(FeatureWant((1, 3), "w"),)),
            Target("m", "f", 9, "w", FeatureGrant((1, 2), 4, "bfloat16")),
            "layers 1,3",
        ),
    ],
)
def test_what_a_target_lacks_is_named(needs: Needs, target: Target, why: str) -> None:
    with pytest.raises(UnfitError, match=why):
        check_fit(needs, target)


def test_a_target_may_send_more_than_a_method_needs() -> None:
    grant = FeatureGrant((1, 2, 3), 4, "bfloat16")
    check_fit(
        Needs(0, "f", (FeatureWant((9,), "x"), FeatureWant((1, 3), "w"))), Target("m", "f", 9, "w", grant)
    )


async def test_a_method_that_answers_with_too_few_trees_is_at_fault() -> None:
    method = Recorder()
    method.draft = lambda asks: [TREE]  # type: ignore[method-assign]
    drafts = Runner(method).draft_now([ask("a"), ask("b")])
    assert [tree for _, tree in drafts] == [TREE, TREE]
    method.draft = lambda asks: []  # type: ignore[method-assign]
    drafts = Runner(method).draft_now([ask("a"), ask("b")])
    assert [tree for _, tree in drafts] == [None, None]


def test_a_session_at_fault_is_left_and_one_that_is_gone_gets_no_tree() -> None:
    rounds = Rounds(Counters())
    runner = Runner(Recorder())
    rounds.welcome([runner], TreeLimits(vocab_size=9, nodes=8, depth=4))
    for name in ("a", "bad draft", "gone"):
        rounds.attach(session(name))
    drafts = runner.draft_now(rounds.asks())
    rounds.detach("gone")
    rounds.attach(session("gone"))
    message = rounds.deliver(drafts, Message())
    assert [key.session_id for key, _, _ in message.trees] == ["a"]
    assert message.leaves == ["bad draft"]
    assert "bad draft" not in rounds
    assert "gone" in rounds
