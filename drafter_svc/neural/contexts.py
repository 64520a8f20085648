"""Which sessions' keys a drafter holds, within a bound: a session that loses them comes back later."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from drafter_svc.neural.growth import Bounds, Growth, Level
from paceline.engine.blocks import BlockAllocator, BlockTask, OutOfBlocksError
from paceline.engine.engine import Engine
from paceline.engine.rows import Segment

# A session that no batch of so many was about has ended, or does not speculate.
IDLE_BATCHES = 64


@dataclass(eq=False, slots=True)
class Context:
    """One session's keys: of its text's first positions, and behind them of nodes of its last tree.

    `ids` is the session's text, which grows. Node i has its keys at position `base` + i of the pool's order,
    where `base` is the length of the text that the tree hangs on; `computed` <= `base`.
    """

    ids: list[int]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    # The last batch that it was part of.
    used: int = 0
    base: int = -1
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    growth: Growth | None = None
    # Ids of the text that it is of; and whether there was no room for some level's keys: it grows no further.
    grown_on: int = -1
    full: bool = False

    def grown(self, level: Level) -> Segment:
        """The rows of a level's nodes, which are appended. There has to be room for their keys."""
        before = len(self.tokens)
        self.tokens += level.tokens
        self.parents += level.parents
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

    def growth_of(self, length: int, bounds: Bounds) -> Growth:
        """The tree on a text of `length` ids: the last one, if it is of that text, or a new one."""
        if self.growth is not None and self.grown_on == length:
            self.growth.enlarge(bounds)
        else:
            self.cut()
            self.growth, self.grown_on = Growth(bounds), length
        return self.growth

    def left(self) -> None:
        """Its blocks were given up."""

    def cut(self) -> None:
        """Forget the tree."""
        self.base, self.growth, self.full = -1, None, False
        self.tokens.clear()
        self.parents.clear()


C = TypeVar("C", bound=Context)


class Contexts(Generic[C]):
    """All sessions' contexts and the pool's blocks.

    Without free blocks, sessions that no batch was about for a while give way, the longest unused first.
    Others keep what they have: were they to take blocks from one another, all would be computed all the time.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        make: Callable[[list[int]], C],
        *,
        idle_batches: int = IDLE_BATCHES,
    ) -> None:
        """`make`: a new context of these ids."""
        self._allocator = BlockAllocator(blocks, block_size)
        self._block_size = block_size
        self._make = make
        self._idle_batches = idle_batches
        self._batches = 0
        # By session id, the longest unused first.
        self._contexts: OrderedDict[str, C] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contexts)

    @property
    def free_keys(self) -> int:
        """Keys that there is room for without anybody's giving way."""
        return self._allocator.free * self._block_size

    def begin_batch(self) -> None:
        """Contexts that are used from now on are part of a new batch."""
        self._batches += 1

    def find(self, session_id: str) -> C | None:
        """The session's context, if it has one."""
        return self._contexts.get(session_id)

    def use(self, session_id: str, ids: list[int], length: int) -> C:
        """The session's context. A new one begins with what is held of another session's equal beginning.

        At most all but the last of the first `length` ids, on which a tree is to hang: there may be more.
        """
        context = self._contexts.get(session_id)
        if context is None:
            context = self._contexts[session_id] = self._make(ids)
            context.computed = self._allocator.adopt(context.blocks, ids[:length])
        context.used = self._batches
        self._contexts.move_to_end(session_id)
        return context

    def reserve(self, context: C, keys: int) -> bool:
        """Make room for so many keys of a context. False where there is none: then nothing was reserved."""
        count = -(-keys // self._block_size)
        for session_id, idle in list(self._contexts.items()):
            if count - len(context.blocks) <= self._allocator.free:
                break
            if idle is not context and self._batches - idle.used > self._idle_batches:
                self.drop(session_id)
        try:
            self._allocator.extend(context.blocks, count)
        except OutOfBlocksError:
            return False
        return True

    def share(self, context: C) -> None:
        """Let sessions that begin like this one use its full blocks."""
        full = context.computed // self._block_size * self._block_size
        self._allocator.keep(context.blocks, context.ids, full)

    def drop(self, session_id: str) -> None:
        """Give up a session's blocks; what they hold of its text is kept until the space is needed."""
        context = self._contexts.pop(session_id, None)
        if context is not None:
            self._allocator.keep(context.blocks, context.ids, context.computed)
            self._allocator.release(context.blocks)
            context.left()

    def lose(self, session_id: str) -> None:
        """Give up a session's blocks without keeping what they hold: a forward has failed."""
        context = self._contexts.pop(session_id, None)
        if context is not None:
            self._allocator.release(context.blocks)
            context.left()

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
        if context.computed == length and context.growth is not None and not context.full:
            rerooted = context.growth.reroot(context.ids[base:length])
        if rerooted is None:
            context.cut()
        else:
            context.growth, numbers = rerooted
            path += numbers
            place = {number: index for index, number in enumerate(numbers)}
            parents = [place.get(context.parents[number], -1) for number in numbers]
            context.tokens = [context.tokens[number] for number in numbers]
            context.base = context.grown_on = length
            context.parents = parents
        paths.append((segment, path))
    engine.accept(paths)
