"""Which session holds which KV block, and texts kept for sessions that begin the same way (prefix cache).

A block whose positions are all computed is entered under its text: the hash of everything before it and its
own tokens. A session that begins with the same text shares such blocks; where it parts from a kept text
inside a block, or the kept text ends there, it gets a copy of that block and goes on in the copy
(copy-on-write). Blocks that nobody holds keep their text until the space is needed, the longest unused
first. A position's KV depends on the text alone (exact mode), so sharing changes no bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.engine.kept_texts import KeptTexts
from paceline.prefix import ROOT, block_digest, key_of

# Fewer equal positions are recomputed rather than copied.
MIN_COPIED = 8


class OutOfBlocksError(RuntimeError):
    """No free block is left; the caller makes room or waits."""


@dataclass(frozen=True, slots=True)
class BlockTask:
    """What must be done to the pool before a forward reads `block`: copy `source` into it, or clear it."""

    block: int
    source: int | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    """A block's content: `tokens` that follow the text whose digest is `before`; `digest` is of both."""

    before: bytes
    tokens: tuple[int, ...]
    digest: bytes

    @classmethod
    def behind(cls, before: bytes, tokens: tuple[int, ...]) -> _Text:
        """The text of `tokens` behind `before`."""
        return cls(before, tokens, block_digest(before, tokens))


class BlockAllocator:
    """Hands out block numbers and keeps texts. Not thread-safe: callers hold their own lock."""

    def __init__(self, blocks: int, block_size: int, *, keep_texts: bool = True) -> None:
        self.total = blocks
        self.block_size = block_size
        # Of the full blocks among the texts, for routing; None where none are kept.
        self.kept = KeptTexts() if keep_texts else None
        self._free = set(range(blocks))
        self._holders: dict[int, int] = {}
        self._texts: dict[int, _Text] = {}
        # Blocks by the digest of what comes before them.
        self._after: dict[bytes, dict[int, _Text]] = {}
        # Blocks that nobody holds but that keep a text, the longest unused first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._tasks: list[BlockTask] = []

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free) + len(self._idle)

    def extend(self, table: list[int], count: int) -> None:
        """Append blocks to `table` until it has `count`; all or nothing. Raises `OutOfBlocksError`."""
        wanted = count - len(table)
        if wanted > self.free:
            raise OutOfBlocksError(f"{wanted} KV blocks wanted, {self.free} are free")
        for _ in range(wanted):
            block = self._take(table[-1] + 1 if table else None)
            self._tasks.append(BlockTask(block))
            table.append(block)

    def adopt(self, table: list[int], token_ids: Sequence[int], root: bytes = ROOT) -> int:
        """Fill an empty `table` with blocks that hold the beginning of `token_ids`.

        `root`: see `paceline.prefix.root_of`; only texts of the same one are found. Returns how many
        positions they hold. At most all but the last token, whose row must be computed for its logits.
        """
        usable = len(token_ids) - 1
        before, held = root, 0
        while held < usable:
            block, same = self._longest(before, token_ids[held : min(usable, held + self.block_size)])
            if same == self.block_size:
                self._hold(block)
                table.append(block)
                before = self._texts[block].digest
                held += same
                continue
            if same >= MIN_COPIED and self.free > (block in self._idle):
                # Held for a moment, so that the copy does not land in its source.
                self._hold(block)
                copy = self._take(None)
                self.release([block])
                self._tasks.append(BlockTask(copy, block))
                table.append(copy)
                held += same
            break
        return held

    def keep(self, table: Sequence[int], token_ids: Sequence[int], computed: int, root: bytes = ROOT) -> None:
        """Enter a session's first `computed` positions in the prefix cache: full blocks and a last part."""
        if self.kept is None:
            return
        before = root
        for index, block in enumerate(table):
            start = index * self.block_size
            if start >= computed:
                return
            text = self._texts.get(block)
            if text is None:
                text = _Text.behind(before, tuple(token_ids[start : min(computed, start + self.block_size)]))
                if not any(other.tokens == text.tokens for other in self._after.get(before, {}).values()):
                    self._texts[block] = text
                    self._after.setdefault(before, {})[block] = text
            if len(text.tokens) == self.block_size:
                self.kept.add(key_of(text.digest))
            before = text.digest

    def release(self, table: list[int]) -> None:
        """Give up a table's blocks and empty it. Kept texts stay until their space is needed."""
        # The end of a text goes first when space is needed: its beginning serves more sessions.
        for block in reversed(table):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block in self._texts:
                self._idle[block] = None
            else:
                self._free.add(block)
        table.clear()

    def take_tasks(self) -> list[BlockTask]:
        """Work on the pool that arose since the last call, in order; for `StepInput.block_tasks`."""
        tasks, self._tasks = self._tasks, []
        return tasks

    def _longest(self, before: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """The block behind `before` that shares the most leading tokens with `tokens`, and their number."""
        best, most = -1, 0
        for block, text in self._after.get(before, {}).items():
            same = _common(text.tokens, tokens)
            if same > most:
                best, most = block, same
        return best, most

    def _hold(self, block: int) -> None:
        self._idle.pop(block, None)
        self._holders[block] = self._holders.get(block, 0) + 1

    def _take(self, neighbour: int | None) -> int:
        """A block without a text: `neighbour` if free, else the lowest, so that tables lie close together."""
        if not self._free:
            evicted, _ = self._idle.popitem(last=False)
            self._forget(evicted)
        block = neighbour if neighbour in self._free else min(self._free)
        assert block is not None
        self._free.discard(block)
        self._holders[block] = 1
        return block

    def _forget(self, block: int) -> None:
        text = self._texts.pop(block)
        siblings = self._after[text.before]
        del siblings[block]
        if not siblings:
            del self._after[text.before]
        if self.kept is not None and len(text.tokens) == self.block_size:
            self.kept.remove(key_of(text.digest))
        self._free.add(block)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
