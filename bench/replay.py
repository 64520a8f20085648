"""A target's recorded answers replayed to drafting methods, step by step, without the system.

A step drafts on a text, walks the tree along the recorded text and feeds back the target's top ids of every
row, rejected ones too, as a verifier would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from bench.drafting import DraftingMethods
from bench.judged import Judge
from bench.recording import TOP_K, Recording, Target
from bench.states import States, hand_over
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Ask
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Feedback, Verdict

Path_ = tuple[int, ...]


@dataclass(slots=True)
class Tally:
    """What one method did: steps and committed tokens by task, seconds of every draft and observation."""

    committed: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    draft_seconds: list[float] = field(default_factory=list)
    learn_seconds: list[float] = field(default_factory=list)
    # By method, of every draft: from the verdict on, with lesson and states.
    method_seconds: list[tuple[float, ...]] = field(default_factory=list)

    def length(self, task: str | None = None) -> float:
        """Committed tokens per step, of one task or of all."""
        if task is not None:
            return self.committed[task] / self.steps[task]
        return sum(self.committed.values()) / sum(self.steps.values())


class Answers:
    """The target's top ids after any path of any recording; asked of the model once, then kept."""

    def __init__(self, target: Callable[[], Target], recordings: Sequence[Recording]) -> None:
        self.recordings = recordings
        self._target = target
        self._loaded = -1
        self._known: dict[tuple[int, int, Path_], tuple[int, ...]] = {}

    def rows(self, prompt: int, base: int, tree: TokenTree) -> list[tuple[int, ...]]:
        """Top ids of the root and of every node of a tree on the first `base` ids of the text."""
        recording = self.recordings[prompt]
        at = base - len(recording.prompt)
        paths: list[Path_] = []
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        if any(
            self._recorded(recording, at, path) is None and (prompt, base, path) not in self._known
            for path in paths
        ):
            self._ask(prompt, base, tree, paths)
        return [
            recording.top_ids[at],
            *(self._recorded(recording, at, path) or self._known[prompt, base, path] for path in paths),
        ]

    @staticmethod
    def _recorded(recording: Recording, at: int, path: Path_) -> tuple[int, ...] | None:
        end = at + len(path)
        on_text = end < len(recording.text) and recording.text[at:end] == path
        return recording.top_ids[end] if on_text else None

    def _ask(self, prompt: int, base: int, tree: TokenTree, paths: Sequence[Path_]) -> None:
        target = self._target()
        if self._loaded != prompt:
            target.load(self.recordings[prompt])
            self._loaded = prompt
        rows = target.rows(base, tree.tokens, tree.parents)
        self._known.update(((prompt, base, path), row) for path, row in zip(paths, rows, strict=True))


class Witness(Protocol):
    """Told of drafts at every place of the texts, also of those that a step passes over."""

    def drafted(self, prompt: int, ids: Sequence[int], trees: Sequence[TokenTree]) -> None:
        """The tree of each method behind `ids`."""


def simulate(
    drafting: DraftingMethods,
    answers: Answers,
    nodes: int,
    depth: int,
    *,
    tenants: int = 1,
    states: States | None = None,
    witness: Witness | None = None,
    texts: int | None = None,
) -> Tally:
    """Replay every recording in turn, as sessions that follow one another in one drafter process.

    Each method is a source of its own; their trees are merged as a verifier merges them. The sessions are
    dealt to `tenants` tenants in turn. `states` are for methods that draft from the target's. `texts`: only
    the first so many recordings.

    With a `witness` every place is drafted at. Methods learn of a step that its first token came with all
    rows' feedback, and of each further one as of a step without a tree: so they know at the next step what
    they would know without the witness.
    """
    tally, judge = Tally(), Judge()
    for prompt, recording in enumerate(answers.recordings[:texts]):
        known = None if states is None else states.of(recording)
        replay = _Replay(drafting, judge, answers, prompt, nodes, depth, tally, known, witness)
        replay.run(str(prompt % tenants))
    return tally


class _Replay:
    """One recording, replayed."""

    def __init__(
        self,
        drafting: DraftingMethods,
        judge: Judge,
        answers: Answers,
        prompt: int,
        nodes: int,
        depth: int,
        tally: Tally,
        states: Tensor | None,
        witness: Witness | None,
    ) -> None:
        self._drafting = drafting
        self._judge = judge
        self._answers = answers
        self._prompt = prompt
        self._nodes = nodes
        self._depth = depth
        self._tally = tally
        self._states = states
        self._witness = witness
        self._recording = answers.recordings[prompt]
        # Seconds that each method has worked since the last verdict.
        self._spent = [0.0] * len(drafting.methods)

    def run(self, tenant: str) -> None:
        """All steps. The first token comes from the prefill, before a drafter may take part."""
        recording, tally, methods = self._recording, self._tally, self._drafting.methods
        key = SessionKey(str(self._prompt), 1)
        params = SamplingParams(max_tokens=len(recording.text))
        session = Hypothesis(key, params, recording.prompt + recording.text[:1], tenant)
        end = len(recording.prompt) + len(recording.text)
        before = session.base_length
        for method in methods:
            method.attach(session)
        while session.base_length < end:
            self._step(session)
            tally.steps[recording.task] = tally.steps.get(recording.task, 0) + 1
        for method in methods:
            method.forget(key.session_id)
        tally.committed[recording.task] = tally.committed.get(recording.task, 0) + end - before

    def _step(self, session: Hypothesis) -> None:
        base, recording = session.base_length, self._recording
        rest = recording.text[base - len(recording.prompt) :]
        tree = self._judge.choose(self._draft(session), self._nodes)
        path: list[int] = []
        while len(path) < len(rest) - 1:
            child = tree.child(path[-1] if path else -1, rest[len(path)])
            if child is None:
                break
            path.append(child)
        self._judge.learn(path)
        accepted = len(path)
        feedback = None
        if self._drafting.feedback_top_k:
            rows = self._answers.rows(self._prompt, base, tree)
            top_ids = tuple(token for row in rows for token in row)
            feedback = Feedback.of(session.ids[-1], tree, top_ids, TOP_K)
        if self._witness is None:
            committed = rest[: accepted + 1]
            self._tell(
                session, Verdict(session.key, base, committed, accepted, len(tree), self._nodes, feedback)
            )
            return
        first = Verdict(session.key, base, rest[:1], 0, len(tree), self._nodes, feedback)
        self._tell(session, first)
        for token in rest[1 : accepted + 1]:
            self._draft(session)
            self._tell(session, Verdict(session.key, session.base_length, (token,), 0, 0, self._nodes))

    def _draft(self, session: Hypothesis) -> list[TokenTree]:
        trees: list[TokenTree] = []
        total = 0.0
        ask = Ask(session, session.base_length, self._nodes, self._depth)
        for number, method in enumerate(self._drafting.methods):
            begun = time.perf_counter()
            if self._states is not None:
                hand_over([method], session, self._states)
            drafting = time.perf_counter()
            trees += method.draft([ask])
            drafted = time.perf_counter()
            self._spent[number] += drafted - begun
            total += drafted - drafting
        self._tally.draft_seconds.append(total)
        if self._witness is not None:
            self._witness.drafted(self._prompt, session.ids, trees)
        self._tally.method_seconds.append(tuple(self._spent))
        self._spent = [0.0] * len(self._spent)
        return trees

    def _tell(self, session: Hypothesis, verdict: Verdict) -> None:
        told = time.perf_counter()
        lesson = session.learn(verdict)
        for number, method in enumerate(self._drafting.methods):
            begun = time.perf_counter()
            method.observe(session, lesson)
            self._spent[number] += time.perf_counter() - begun
            while method.settle():
                pass
        self._tally.learn_seconds.append(time.perf_counter() - told)
