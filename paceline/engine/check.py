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

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paceline.engine.blocks import BlockAllocator
from paceline.engine.rows import Segment

if TYPE_CHECKING:
    from paceline.engine.model import Decoder

# Positions of the texts; the longest is more than a KV block.
SHORT, MIDDLE, LONG = 22, 47, 157
# Positions of the longest text where it has to be longer than a window.
LONGEST = 1024
# Rows at a text's end whose logits are compared, and how many of them stand in a tree.
TAIL, DEPTH = 8, 4
# Where the other branch leaves a text, counted from the root, and its tokens.
FORK, BRANCH = 2, 3
# Differences that are rounding at least. The model's own attentions differing by more allow more, but not
# much: those of Falcon with ALiBi compute different things.
_ROUNDING = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_OWN_SPREADS, _MOST = 4.0, 5.0
# No logit that means something is larger; some models mark ids that they never draw so.
_MEANT = 1e4
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")

# In the order in which they are told: a fault in one mostly shows in those that follow.
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


class NotServedError(ValueError):
    """The engine does not compute this model; the message says what differs."""


@dataclass(frozen=True, slots=True)
class Text:
    """Ids, and the model's own logits of the last rows: `logits` [rows, vocab] float32 on the CPU."""

    token_ids: tuple[int, ...]
    logits: Tensor
    # By how much the model's own attentions differ from one another.
    spread: float

    def row(self, position: int) -> int:
        """Index into `logits` of a position."""
        return position - (len(self.token_ids) - len(self.logits))


@dataclass(frozen=True, slots=True)
class OwnLogits:
    """What a model says of some texts and of a branch of each, by its own forward."""

    texts: tuple[Text, ...]
    branches: tuple[Text, ...]
    # A window that the texts do not reach, or None.
    window_beyond: int | None = None

    @classmethod
    def of(cls, model: Any, *, context: int, longest: int = LONGEST) -> OwnLogits:
        """Ask a model that attends by itself still. Raises `NotServedError` where it cannot be asked.

        `context`: positions that a text may have; `longest`: see above.
        """
        config = model.config.get_text_config(decoder=True)
        windows = [size for name in _WINDOWS if (size := getattr(config, name, None))]
        windows = [size for size in windows if isinstance(size, int) and size < context]
        reached = [size for size in windows if size + 2 * TAIL <= longest]
        lengths = [SHORT, MIDDLE, max([LONG, *(size + 2 * TAIL for size in reached)])]
        lengths = [min(length, context) for length in lengths]
        if lengths[0] <= TAIL + BRANCH:
            raise NotServedError(f"its context of {context} positions is too short to check")
        random = torch.Generator().manual_seed(0)
        # The ends of a vocabulary are special ids: padding, images.
        low, high = config.vocab_size // 8, config.vocab_size - config.vocab_size // 8
        texts, branches = [], []
        for length in lengths:
            ids = torch.randint(low, high, (length,), generator=random).tolist()
            other = torch.randint(low, high, (BRANCH,), generator=random).tolist()
            texts.append(_ask(model, ids, TAIL))
            branches.append(_ask(model, [*ids[: length - TAIL + 1 + FORK], *other], BRANCH))
        beyond = [size for size in windows if size not in reached]
        return cls(tuple(texts), tuple(branches), max(beyond, default=None))


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
    """What `check` has seen."""

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


def check(decoder: Decoder, own: OwnLogits) -> Report:
    """Serve the texts in all cases and compare. Raises whatever the model's modules raise."""
    loop = _Loop.of(decoder, own)
    seen: dict[str, list[_Seen]] = {}
    for name, case in _CASES.items():
        seen[name] = case(loop, own)
    alone = {(id(row.text), row.position): row.logits for row in seen["alone"]}
    cases = []
    for name, rows in seen.items():
        difference, tolerance = _difference(rows, decoder.dtype)
        bitwise = all(
            torch.equal(row.logits, other)
            for row in rows
            if (other := alone.get((id(row.text), row.position))) is not None
        )
        cases.append(CaseResult(name, difference, tolerance, bitwise))
    return Report(tuple(cases), own.window_beyond)


def blocks_for(own: OwnLogits, block_size: int) -> int:
    """Blocks of a pool that `check` needs."""
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
    """A pool of its own, and steps over it."""

    decoder: Decoder
    pool: Any
    allocator: BlockAllocator

    @classmethod
    def of(cls, decoder: Decoder, own: OwnLogits) -> _Loop:
        """A pool for all sessions of a case and for what is kept of an earlier one."""
        blocks = blocks_for(own, decoder.block_size)
        return cls(decoder, decoder.kv_pool(blocks), BlockAllocator(blocks, decoder.block_size))

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
        self.pool.prepare(self.allocator.take_tasks())
        logits = self.decoder.forward(self.decoder.batch(segments), self.pool)
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
    sources: list[int] = []
    targets: list[int] = []
    for session, root in zip(sessions, roots, strict=True):
        blocks, size = session.blocks, loop.allocator.block_size
        for depth in range(DEPTH):
            for slots, index in ((sources, root + 2 + 2 * depth), (targets, root + 1 + depth)):
                slots.append(blocks[index // size] * size + index % size)
        session.computed += DEPTH
    device = loop.decoder.device
    loop.pool.move(torch.tensor(sources, device=device), torch.tensor(targets, device=device))
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


def _difference(rows: Sequence[_Seen], dtype: torch.dtype) -> tuple[float, float]:
    """The worst text's median difference of a case, and what is allowed of that text."""
    by_text: dict[int, list[_Seen]] = {}
    for row in rows:
        by_text.setdefault(id(row.text), []).append(row)
    worst = (0.0, _ROUNDING[dtype])
    for seen in by_text.values():
        text = seen[0].text
        got = torch.stack([row.logits for row in seen]).float().cpu()
        expected = text.logits[[text.row(row.position) for row in seen]]
        rounding = _ROUNDING[dtype]
        tolerance = min(max(rounding, _OWN_SPREADS * text.spread), _MOST * rounding)
        difference = _median_difference(got, expected)
        if difference / tolerance >= worst[0] / worst[1]:
            worst = difference, tolerance
    return worst


def _median_difference(got: Tensor, expected: Tensor) -> float:
    """Of rows [rows, vocab], relative to their spread; infinite where a number is none."""
    meant = expected.abs() < _MEANT
    spread = torch.where(meant, expected, torch.zeros(())).std(dim=-1) * expected.shape[-1] ** 0.5
    apart = torch.where(meant, got - expected, torch.zeros(())).norm(dim=-1)
    relative = (apart / spread.clamp(min=1e-20)).nan_to_num(nan=torch.inf)
    return float(relative.quantile(0.5, interpolation="higher"))


@torch.inference_mode()
def _ask(model: Any, token_ids: Sequence[int], rows: int) -> Text:
    """The model's own logits of the last rows, in the first and the second of its attentions."""
    ids = torch.tensor([token_ids], device=model.device)
    told: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        told["logits_to_keep"] = rows
    chosen = model.config._attn_implementation
    logits = []
    for attention in dict.fromkeys((chosen, "eager")):
        try:
            model.set_attn_implementation(attention)
        except (ValueError, ImportError):
            continue
        logits.append(model(**told).logits[0, -rows:].float().cpu())
    model.set_attn_implementation(chosen)
    spread = _median_difference(logits[-1], logits[0])
    return Text(tuple(token_ids), logits[0], spread)
