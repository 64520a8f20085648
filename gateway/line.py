"""The order of all who wait: key holders in turn, and first come, first served within a holder."""

from __future__ import annotations

from bisect import insort
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """A waiting line as plain data; the waiting itself happens elsewhere.

    Items of one holder are served by priority, the lowest first, then by number. While a holder has an item
    in line, no other holder is served twice before it.
    """

    def __init__(self) -> None:
        # Holders in the order in which they are served next; each one's items by number.
        self._queues: dict[str, list[tuple[tuple[int, int], T]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def join(self, holder: str, number: int, item: T, priority: int = 0) -> None:
        """Add an item. `number`: the order of arrival, unique per holder."""
        queue = self._queues.setdefault(holder, [])
        insort(queue, ((priority, number), item), key=lambda entry: entry[0])
        self._length += 1

    def leave(self, holder: str, number: int) -> None:
        """Remove an item. Idempotent."""
        queue = self._queues.get(holder, [])
        left = [entry for entry in queue if entry[0][1] != number]
        self._length -= len(queue) - len(left)
        if left:
            self._queues[holder] = left
        else:
            self._queues.pop(holder, None)

    def first(self) -> T | None:
        """The next item; None if the line is empty."""
        return next((queue[0][1] for queue in self._queues.values()), None)

    def serve(self) -> None:
        """Remove the next item; its holder goes behind the others."""
        holder = next(iter(self._queues))
        queue = self._queues.pop(holder)
        self._length -= 1
        if len(queue) > 1:
            self._queues[holder] = queue[1:]


def may_wait(own: int, everybody: int, room: int) -> bool:
    """Whether a holder with `own` waiting requests, of `everybody` in all, may add one more.

    A holder may have as many as there are places left of `room`: one holder alone half of them, two a third
    each. So some are always left for a holder that has none waiting yet.
    """
    return own < room - everybody
