"""Which sessions' keys a drafter holds, within a bound: a session that loses them comes back later."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from drafter_svc.neural.growth import Growth, Level
from paceline.engine.blocks import BlockAllocator, BlockTask, OutOfBlocksError
from paceline.engine.engine import Engine
from paceline.engine.rows import Segment


@dataclass(eq=False, slots=True)
class Context:
    """One session's keys: of its text's first positions, and behind them of nodes of its last tree.

    `ids` is the session's text, which grows. Node i has its keys at position `base` + i of the pool's order,
    where `base` is the length of the text that the tree hangs on; `computed` <= `base`.
    """

    ids: list[int]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    base: int = -1
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    growth: Growth | None = None

    def extend(self, level: Level) -> int:
        """Append a level's nodes; returns how many there were before."""
        before = len(self.tokens)
        self.tokens += level.tokens
        self.parents += level.parents
        return before

    def grown(self, level: Level) -> Segment:
        """The rows of a level's nodes, which are appended."""
        before = self.extend(level)
        return Segment(
            (), self.base, tuple(self.blocks), tuple(self.tokens), tuple(self.parents), computed_nodes=before
        )

    def path(self, length: int) -> list[int]:
        """The nodes that the text followed from `base` to at most `length`, as far as they have keys."""
        path: list[int] = []
        node = -1
        for token in self.ids[self.base : length]:
            children = (
                child
                for child in range(node + 1, len(self.tokens))
                if self.parents[child] == node and self.tokens[child] == token
            )
            node = next(children, -1)
            if node < 0:
                break
            path.append(node)
        return path

    def cut(self) -> None:
        """Forget the tree."""
        self.base, self.growth = -1, None
        self.tokens.clear()
        self.parents.clear()


class Contexts:
    """All sessions' contexts and the pool's blocks. The session that was used longest ago gives way first."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self._allocator = BlockAllocator(blocks, block_size)
        self._block_size = block_size
        # By session id, the longest unused first.
        self._contexts: OrderedDict[str, Context] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contexts)

    def find(self, session_id: str) -> Context | None:
        """The session's context, if it has one."""
        return self._contexts.get(session_id)

    def use(self, session_id: str, ids: list[int]) -> Context:
        """The session's context. A new one begins with what is held of another session's equal beginning."""
        context = self._contexts.get(session_id)
        if context is None:
            context = self._contexts[session_id] = Context(ids)
            context.computed = self._allocator.adopt(context.blocks, ids)
        self._contexts.move_to_end(session_id)
        return context

    def reserve(self, context: Context, keys: int, busy: Collection[Context]) -> bool:
        """Make room for so many keys of a context. Contexts that are not `busy` may lose theirs.

        False where that does not suffice: then nothing was reserved.
        """
        count = -(-keys // self._block_size)
        for session_id in list(self._contexts):
            if count - len(context.blocks) <= self._allocator.free:
                break
            idle = self._contexts[session_id]
            if idle is not context and idle not in busy:
                self.drop(session_id)
        try:
            self._allocator.extend(context.blocks, count)
        except OutOfBlocksError:
            return False
        return True

    def share(self, context: Context) -> None:
        """Let sessions that begin like this one use its full blocks."""
        full = context.computed // self._block_size * self._block_size
        self._allocator.keep(context.blocks, context.ids, full)

    def drop(self, session_id: str) -> None:
        """Give up a session's blocks; what they hold of its text is kept until the space is needed."""
        context = self._contexts.pop(session_id, None)
        if context is not None:
            self._allocator.keep(context.blocks, context.ids, context.computed)
            self._allocator.release(context.blocks)

    def lose(self, session_id: str) -> None:
        """Give up a session's blocks without keeping what they hold: a forward has failed."""
        context = self._contexts.pop(session_id, None)
        if context is not None:
            self._allocator.release(context.blocks)

    def take_tasks(self) -> list[BlockTask]:
        """See `BlockAllocator.take_tasks`."""
        return self._allocator.take_tasks()


def follow(engine: Engine, contexts: Iterable[tuple[Context, int]]) -> None:
    """Bring contexts up to their texts' lengths: what drafted nodes have computed is not computed again.

    Keys of committed nodes move to their positions, for all sessions in one copy. Where the text's last token
    is a node that was grown, the tree below it goes on, and its nodes' keys move, too.
    """
    paths: list[tuple[Segment, list[int]]] = []
    for context, length in contexts:
        base = context.base
        if not 0 <= base < length:
            continue
        path = context.path(length)
        segment = Segment((0,), base - 1, tuple(context.blocks))
        context.computed = base + len(path)
        rerooted = None
        if context.computed == length and context.growth is not None:
            rerooted = context.growth.reroot(context.ids[base:length])
        if rerooted is None:
            context.cut()
        else:
            context.growth, numbers = rerooted
            path += numbers
            place = {number: index for index, number in enumerate(numbers)}
            parents = [place.get(context.parents[number], -1) for number in numbers]
            context.tokens = [context.tokens[number] for number in numbers]
            context.base, context.parents = length, parents
        paths.append((segment, path))
    engine.accept(paths)
