"""One order for all who wait: first come, first served of a key's holder, and holders in turn."""

from __future__ import annotations

from bisect import insort
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """Those who wait for one thing. Plain data: who waits does so elsewhere.

    Nobody is served before one of the same holder with a smaller number, and while a holder has somebody in
    the line no other holder is served twice before it.
    """

    def __init__(self) -> None:
        # In the order in which holders are served next; each holder's by number.
        self._queues: dict[str, list[tuple[int, T]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def join(self, holder: str, number: int, item: T) -> None:
        """Wait. `number` is the order of arrival; no two of a holder have the same."""
        insort(self._queues.setdefault(holder, []), (number, item), key=lambda entry: entry[0])
        self._length += 1

    def leave(self, holder: str, number: int) -> None:
        """Give up; one that does not wait has left already."""
        queue = self._queues.get(holder, [])
        left = [entry for entry in queue if entry[0] != number]
        self._length -= len(queue) - len(left)
        if left:
            self._queues[holder] = left
        else:
            self._queues.pop(holder, None)

    def first(self) -> T | None:
        """Who is next; None where nobody waits."""
        return next((queue[0][1] for queue in self._queues.values()), None)

    def serve(self) -> None:
        """Take the next one out; its holder goes behind the others."""
        holder = next(iter(self._queues))
        queue = self._queues.pop(holder)
        self._length -= 1
        if len(queue) > 1:
            self._queues[holder] = queue[1:]


def may_wait(own: int, everybody: int, room: int) -> bool:
    """Whether a holder of whom `own` wait, among `everybody`, may send one more into a room for `room`.

    Each may take as much as is left: one alone half of the room, two a third each, and there is always some
    left for a holder who has nobody in it yet.
    """
    return own < room - everybody
