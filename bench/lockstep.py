"""A static batch of sessions on the bare engine, greedy, drafts by prompt lookup; padded or not.

What padding costs is asked of one implementation that can do both, with the same kernels. A padded batch
has the shape of a rectangle (EMS-SD, arXiv 2405.07542, section 3): every session's draft is filled up to
the longest (padded inputs); every session's keys begin as far from the start as the longest prompt reaches,
and move on by as many places as the session that accepted most, leaving places that hold nothing (padded
KV).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.engine.blocks import BlockTask
from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.model import Decoder
from paceline.engine.rows import Segment
from paceline.sampling import SamplingParams

# As many as LLMA, EMS-SD's base method, copies.
DRAFT_TOKENS = 7
# Longest and shortest n-gram that is looked up. A single token says little of what follows.
MAX_NGRAM, MIN_NGRAM = 4, 2
# Rows of a prompt in one forward.
PROMPT_ROWS = 256
_PADDING_TOKEN = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """Whether drafts are made at all, and what is padded."""

    drafts: bool = True
    pad_inputs: bool = False
    pad_kv: bool = False
    pad_prompts: bool = False


@dataclass(slots=True)
class Counts:
    """Counts of one run: rows and padding rows; keys at its end and hidden keys."""

    rows: int = 0
    padding_rows: int = 0
    keys: int = 0
    hidden_keys: int = 0


class PromptLookup:
    """Drafts what followed the latest earlier occurrence of the text's last n-gram, the longest first.

    Prompt lookup decoding (Saxena, 2023), as `transformers.generate(prompt_lookup_num_tokens=...)`.
    """

    def __init__(self, ids: list[int]) -> None:
        """`ids` is the session's text, which only grows."""
        self._ids = ids
        # For each n-gram: index of the token that followed its latest occurrence.
        self._next: dict[tuple[int, ...], int] = {}
        self._known = 0

    def __call__(self) -> list[int]:
        """At most `DRAFT_TOKENS` tokens; none where nothing was found."""
        ids = self._ids
        for end in range(self._known + 1, len(ids)):
            for length in range(MIN_NGRAM, min(MAX_NGRAM, end) + 1):
                self._next[tuple(ids[end - length : end])] = end
        self._known = len(ids) - 1
        for length in range(min(MAX_NGRAM, len(ids) - 1), MIN_NGRAM - 1, -1):
            begin = self._next.get(tuple(ids[-length:]))
            if begin is not None:
                return ids[begin : begin + DRAFT_TOKENS]
        return []


@dataclass(slots=True)
class _Session:
    ids: list[int]
    length_limit: int
    blocks: Sequence[int]
    # Index of the last token's key.
    root: int
    lookup: PromptLookup
    hidden: list[int]

    @property
    def missing(self) -> int:
        return self.length_limit - len(self.ids)


class Lockstep:
    """Sessions that begin together and decode in the same forwards, each until it has `max_tokens`."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Sequence[int]], *, max_tokens: int) -> None:
        """Allocates KV for the longest that padding may need, and computes the prompts'."""
        # Padded KV moves on by a draft and the root in every step at most.
        longest = max(map(len, prompts)) + max_tokens * (DRAFT_TOKENS + 1) + DRAFT_TOKENS
        self._blocks = -(-longest // decoder.block_size)
        self._prompts, self._max_tokens = prompts, max_tokens
        self._engine = Engine(decoder, self._blocks * len(prompts))
        self._tasks = [BlockTask(block) for block in range(self._engine.blocks)]
        for number, prompt in enumerate(prompts):
            for start in range(0, len(prompt) - 1, PROMPT_ROWS):
                run = prompt[start : min(start + PROMPT_ROWS, len(prompt) - 1)]
                segment = Segment(run, start, self._table(number), wants_logits=False)
                self._engine.forward([segment], self._take_tasks())

    def _take_tasks(self) -> list[BlockTask]:
        """All blocks' before the first forward, none later."""
        tasks, self._tasks = self._tasks, []
        return tasks

    def _table(self, number: int) -> range:
        return range(number * self._blocks, (number + 1) * self._blocks)

    def run(self, shape: Shape) -> tuple[list[list[int]], Counts]:
        """Every session's answer of `max_tokens` tokens (stop tokens do not end it), and what was computed.

        May be called again: prompts' keys stay as they are.
        """
        longest = max(map(len, self._prompts))
        sessions = []
        for number, prompt in enumerate(self._prompts):
            ids = list(prompt)
            limit = len(prompt) + self._max_tokens
            root = (longest if shape.pad_prompts else len(prompt)) - 1
            hidden = list(range(len(prompt) - 1, root))
            sessions.append(_Session(ids, limit, self._table(number), root, PromptLookup(ids), hidden))
        counts = Counts()
        while going_on := [session for session in sessions if session.missing]:
            self._step(going_on, shape, counts)
        counts.keys = sum(session.root for session in sessions)
        counts.hidden_keys = sum(len(session.hidden) for session in sessions)
        return [session.ids[-self._max_tokens :] for session in sessions], counts

    def _step(self, sessions: Sequence[_Session], shape: Shape, counts: Counts) -> None:
        drafts = [session.lookup()[: session.missing - 1] if shape.drafts else [] for session in sessions]
        longest = max(map(len, drafts))
        segments = []
        for session, draft in zip(sessions, drafts, strict=True):
            padding = longest - len(draft) if shape.pad_inputs else 0
            counts.padding_rows += padding
            nodes = len(draft) + padding
            segments.append(
                Segment(
                    run=session.ids[-1:],
                    start=session.root,
                    blocks=session.blocks,
                    tree_tokens=[*draft, *[_PADDING_TOKEN] * padding],
                    tree_parents=range(-1, nodes - 1),
                    hidden=session.hidden,
                )
            )
        sampling = SamplingParams(max_tokens=self._max_tokens)
        rows = [SessionRows(segment, sampling) for segment in segments]
        decisions = self._engine.step(StepInput(rows, self._take_tasks())).decisions
        counts.rows += sum(segment.num_rows for segment in segments)
        # A chain's accepted keys lie where they belong. Padding is not accepted, even where it is right.
        accepted = [min(len(made.path), len(draft)) for made, draft in zip(decisions, drafts, strict=True)]
        most = max(accepted)
        for session, segment, decision, count in zip(sessions, segments, decisions, accepted, strict=True):
            tokens = [segment.tree_tokens[node] for node in decision.path] + [decision.bonus]
            session.ids += tokens[: count + 1]
            moved = 1 + (most if shape.pad_kv else count)
            session.hidden += range(session.root + count + 1, session.root + moved)
            session.root += moved
