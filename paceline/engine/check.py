"""Whether the engine computes the model that was loaded: its logits against the model's own forward.

`OwnLogits.of` asks the model while it still attends by itself; `check` then serves the same texts as a
verifier does, step by step, and compares. Texts are random ids: what is checked is arithmetic, not language.
A row's difference is relative to the spread of its logits, and rows are judged by the median of each text's
rows in a case, because a mixture of experts may choose another expert for a row when an input is rounded
otherwise.

What it costs is bounded: texts have `LONG` positions at most, or a window more where that is within
`longest` (1024 by default). A window that is longer is not reached; the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.engine.blocks import BlockAllocator
from paceline.engine.engine import Engine
from paceline.engine.own_logits import BRANCH, DEPTH, FORK, NotServedError, OwnLogits, Text, median_difference
from paceline.engine.rows import Segment

# Differences up to these are rounding. Where the model's own kinds of attention differ by more, more is
# allowed, but not much more: Falcon's with ALiBi compute different things.
_ROUNDING = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_OWN_SPREADS, _MOST = 4.0, 5.0
# In the order of the report: a fault in one case mostly shows in the cases that follow.
CASES = {
    "alone": "a session alone, one chunk and then single rows",
    "batch": "sessions of unlike lengths in one batch",
    "chunks": "a prompt in chunks, beside other sessions' rows",
    "tree": "a draft tree with branches",
    "moved": "single rows after an accepted path was moved to its place",
    "prefix": "a session that begins with another's cached text",
}
_MEANING = {
    "alone": "its attention, its positions or a state beside keys and values is none the engine computes",
    "batch": "something in it depends on the other sessions of a batch",
    "chunks": "it keeps more of a text than keys and values",
    "tree": "something in it depends on the order of rows and not on their positions",
    "moved": "it keeps more of a text than keys and values",
    "prefix": "it keeps more of a text than keys and values",
}


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How far the engine is from the model in one case."""

    name: str
    difference: float
    tolerance: float
    # Whether all of its rows are bitwise those of a session alone.
    bitwise: bool

    @property
    def ok(self) -> bool:
        """Whether the difference is rounding."""
        return self.difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class Report:
    """The result of `check`."""

    cases: tuple[CaseResult, ...]
    window_beyond: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the engine computes the model."""
        return all(case.ok for case in self.cases)

    @property
    def bitwise(self) -> bool:
        """Whether rows were the same bits in every case."""
        return all(case.bitwise for case in self.cases)

    def complaint(self) -> str:
        """One sentence on the first case that failed; empty where none did."""
        for case in self.cases:
            if not case.ok:
                return (
                    f"with {CASES[case.name]} the logits differ from the model's own by "
                    f"{case.difference:.2g} of their spread, where rounding gives {case.tolerance:.2g}: "
                    f"{_MEANING[case.name]}"
                )
        return ""


def check(engine: Engine, own: OwnLogits) -> Report:
    """Serve the texts in all cases and compare. Raises whatever the model's modules raise.

    The engine has `blocks_for` blocks, and nobody holds any of them.
    """
    loop = _Loop(engine, BlockAllocator(engine.blocks, engine.block_size))
    seen: dict[str, list[_Seen]] = {}
    for name, case in _CASES.items():
        seen[name] = case(loop, own)
    alone = {(id(row.text), row.position): row.logits for row in seen["alone"]}
    tolerance = _tolerance(engine.decoder.dtype, own.spread)
    cases = []
    for name, rows in seen.items():
        difference = _difference(rows)
        bitwise = all(
            torch.equal(row.logits, other)
            for row in rows
            if (other := alone.get((id(row.text), row.position))) is not None
        )
        cases.append(CaseResult(name, difference, tolerance, bitwise))
    return Report(tuple(cases), own.window_beyond)


def blocks_for(own: OwnLogits, block_size: int) -> int:
    """Blocks that `check` needs: for all sessions of a case and for what is kept of an earlier one."""
    return sum(2 + len(text.token_ids) // block_size for text in (*own.texts, *own.branches))


@dataclass(frozen=True, slots=True)
class _Seen:
    """One row that the engine computed."""

    text: Text
    position: int
    # [vocab], in the engine's own type.
    logits: Tensor


@dataclass(eq=False)
class _Session:
    text: Text
    blocks: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def prompt(self) -> int:
        """Positions before the first row that is compared ends."""
        return len(self.text.token_ids) - len(self.text.logits) + 1


@dataclass(frozen=True, slots=True)
class _Loop:
    """Steps over an engine whose logits are looked at."""

    engine: Engine
    allocator: BlockAllocator

    def step(
        self,
        *parts: tuple[_Session, int],
        tree: Callable[[_Session], tuple[list[int], list[int]]] | None = None,
    ) -> list[Tensor]:
        """Compute each session up to a position, with a tree behind it; logits [rows, vocab] of each."""
        segments = []
        for session, stop in parts:
            tokens, parents = tree(session) if tree else ([], [])
            size = self.allocator.block_size
            self.allocator.extend(session.blocks, -(-(stop + len(tokens)) // size))
            run = session.text.token_ids[session.computed : stop]
            segments.append(Segment(run, session.computed, tuple(session.blocks), tokens, parents))
            session.computed = stop
        logits = self.engine.forward(segments, self.allocator.take_tasks())
        sizes = [1 + len(segment.tree_tokens) for segment in segments]
        if logits.shape[0] != sum(sizes):
            raise NotServedError("it does not compute the logits of chosen rows (logits_to_keep)")
        return list(logits.split(sizes))

    def follow(self, sessions: Sequence[_Session]) -> list[_Seen]:
        """Single rows of all sessions together, to the end of their texts."""
        seen = []
        while going := [session for session in sessions if session.computed < len(session.text.token_ids)]:
            logits = self.step(*((session, session.computed + 1) for session in going))
            seen += [_last(session, rows) for session, rows in zip(going, logits, strict=True)]
        return seen

    def end(self, sessions: Sequence[_Session], *, keep: bool = False) -> None:
        """Give the sessions' blocks up; `keep`: as texts that others may find."""
        for session in sessions:
            if keep:
                self.allocator.keep(session.blocks, session.text.token_ids, session.computed)
            self.allocator.release(session.blocks)


def _last(session: _Session, logits: Tensor) -> _Seen:
    return _Seen(session.text, session.computed - 1, logits[0])


def _alone(loop: _Loop, own: OwnLogits) -> list[_Seen]:
    seen = []
    for text in (*own.texts, *own.branches):
        session = _Session(text)
        (logits,) = loop.step((session, session.prompt))
        seen += [_last(session, logits), *loop.follow([session])]
        loop.end([session])
    return seen


def _batch(loop: _Loop, own: OwnLogits) -> list[_Seen]:
    sessions = [_Session(text) for text in own.texts]
    logits = loop.step(*((session, session.prompt) for session in sessions))
    seen = [_last(session, rows) for session, rows in zip(sessions, logits, strict=True)]
    seen += loop.follow(sessions)
    loop.end(sessions)
    return seen


def _chunks(loop: _Loop, own: OwnLogits) -> list[_Seen]:
    first, *others = (_Session(text) for text in own.texts)
    (logits,) = loop.step((first, first.prompt))
    seen = [_last(first, logits)]
    for chunk in (5, 23, 0):
        stops = [session.computed + chunk if chunk else session.prompt for session in others]
        parts = [(first, first.computed + 1)]
        parts += [
            (session, min(stop, session.prompt - 1) if chunk else stop)
            for session, stop in zip(others, stops, strict=True)
        ]
        rows = loop.step(*parts)
        seen.append(_last(first, rows[0]))
    seen += [_last(session, logits) for session, logits in zip(others, rows[1:], strict=True)]
    seen += loop.follow([first, *others])
    loop.end([first, *others])
    return seen


def _tree_of(session: _Session, branch: Text) -> tuple[list[int], list[int]]:
    """Tokens and parents: at each level a wrong sibling before the right token, and a branch."""
    tokens: list[int] = []
    parents: list[int] = []
    parent = -1
    for depth in range(DEPTH):
        right = session.text.token_ids[session.prompt + depth]
        tokens += [right ^ 1, right]
        parents += [parent, parent]
        parent = len(tokens) - 1
    parent = 2 * FORK - 1
    for token in branch.token_ids[-BRANCH:]:
        tokens.append(token)
        parents.append(parent)
        parent = len(tokens) - 1
    return tokens, parents


def _tree(loop: _Loop, own: OwnLogits) -> list[_Seen]:
    seen, sessions, _ = _drafted(loop, own)
    loop.end(sessions)
    return seen


def _moved(loop: _Loop, own: OwnLogits) -> list[_Seen]:
    _, sessions, roots = _drafted(loop, own)
    # Of each level the second node is the right one.
    path = [1 + 2 * depth for depth in range(DEPTH)]
    loop.engine.accept(
        (Segment(session.text.token_ids[root : root + 1], root, session.blocks), path)
        for session, root in zip(sessions, roots, strict=True)
    )
    for session in sessions:
        session.computed += DEPTH
    seen = loop.follow(sessions)
    # What the next case finds.
    loop.end(sessions, keep=True)
    return seen


def _drafted(loop: _Loop, own: OwnLogits) -> tuple[list[_Seen], list[_Session], list[int]]:
    """All texts' trees in one batch: rows of the right path and the branch, the sessions, their roots."""
    sessions = [_Session(text) for text in own.texts]
    loop.step(*((session, session.prompt - 1) for session in sessions))
    branch_of = {id(text): branch for text, branch in zip(own.texts, own.branches, strict=True)}
    logits = loop.step(
        *((session, session.prompt) for session in sessions),
        tree=lambda session: _tree_of(session, branch_of[id(session.text)]),
    )
    seen = []
    for session, rows in zip(sessions, logits, strict=True):
        root = session.computed - 1
        seen.append(_Seen(session.text, root, rows[0]))
        seen += [_Seen(session.text, root + 1 + depth, rows[2 + 2 * depth]) for depth in range(DEPTH)]
        seen += [
            _Seen(branch_of[id(session.text)], root + 1 + FORK + index, rows[1 + 2 * DEPTH + index])
            for index in range(BRANCH)
        ]
    return seen, sessions, [session.prompt - 1 for session in sessions]


def _prefix(loop: _Loop, own: OwnLogits) -> list[_Seen]:
    sessions = [_Session(branch) for branch in own.branches]
    for session in sessions:
        session.computed = loop.allocator.adopt(session.blocks, session.text.token_ids)
    logits = loop.step(*((session, max(session.prompt, session.computed + 1)) for session in sessions))
    seen = [_last(session, rows) for session, rows in zip(sessions, logits, strict=True)]
    seen += loop.follow(sessions)
    loop.end(sessions)
    return seen


_CASES: dict[str, Callable[[_Loop, OwnLogits], list[_Seen]]] = {
    "alone": _alone,
    "batch": _batch,
    "chunks": _chunks,
    "tree": _tree,
    "moved": _moved,
    "prefix": _prefix,
}


def _tolerance(dtype: torch.dtype, spread: float) -> float:
    rounding = _ROUNDING[dtype]
    return min(max(rounding, _OWN_SPREADS * spread), _MOST * rounding)


def _difference(rows: Sequence[_Seen]) -> float:
    """The worst text's median difference of a case."""
    by_text: dict[int, list[_Seen]] = {}
    for row in rows:
        by_text.setdefault(id(row.text), []).append(row)
    return max(_text_difference(seen) for seen in by_text.values())


def _text_difference(seen: Sequence[_Seen]) -> float:
    text = seen[0].text
    got = torch.stack([row.logits for row in seen]).float().cpu()
    return median_difference(got, text.logits[[text.row(row.position) for row in seen]])
