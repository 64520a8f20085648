"""Which hidden states go down a drafter's stream next. Bookkeeping: no tensor, no lock, no I/O.

What a window does not take is not queued: a session's place in its text is all that is remembered, and the
states stay where they are kept until there is room again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from paceline.features import MAX_CHUNK_BYTES, STATE_BYTES, FeatureGrant, FeatureRequest
from paceline.session import SessionKey


@dataclass(frozen=True, slots=True)
class KeptStates:
    """The hidden states that this verifier keeps, and whose they are; no layers where it keeps none."""

    layers: tuple[int, ...] = ()
    width: int = 0
    # As torch names it. What is not in `paceline.features.STATE_BYTES` does not travel.
    dtype: str = "float32"
    weights_fingerprint: str = ""

    def grant(self, requests: Iterable[FeatureRequest]) -> tuple[FeatureGrant, int] | None:
        """What is granted, and its window in bytes: of the first request that can be served, if any can."""
        for request in requests:
            grant = FeatureGrant(request.layers, self.width, self.dtype)
            fits = request.weights_fingerprint in ("", self.weights_fingerprint)
            kept = self.dtype in STATE_BYTES and set(request.layers) <= set(self.layers)
            if fits and kept and grant.position_bytes <= min(request.window_bytes, MAX_CHUNK_BYTES):
                return grant, request.window_bytes
        return None


@dataclass(slots=True)
class _Place:
    """How far a session's states have gone down."""

    key: SessionKey
    # The next to go.
    position: int
    # Those of earlier positions have gone to a drafter before.
    sent_before: int
    # Length of the text that the drafter has been told. A head reads a position's states beside the id that
    # follows, so those of the last id would be of no use yet.
    told: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring positions of a session whose states may go down now."""

    place: _Place
    start: int
    count: int

    @property
    def key(self) -> SessionKey:
        """Of the session."""
        return self.place.key


class StateFlow:
    """The hidden states of one stream: each joined session's from its place on, within the window.

    Sessions take turns, and share a message equally. On the event loop.
    """

    def __init__(self, grant: FeatureGrant, window_bytes: int) -> None:
        self.grant = grant
        self.window_bytes = window_bytes
        # Bytes of states since the stream began: gone down, and taken in by the drafter as it says.
        self.sent_bytes = 0
        self.taken_bytes = 0
        # Of those that had gone to a drafter before, what has not been paid for: see `paid`.
        self.owed_bytes = 0
        # By session id; whose turn it is stands first.
        self._places: dict[str, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def join(self, key: SessionKey, start: int, *, sent_before: int = 0) -> None:
        """The session's states from position `start` on are wanted, whatever went down before.

        Some drafter has been sent those of positions before `sent_before`: to send them again is owed for.
        """
        self._places.pop(key.session_id, None)
        self._places[key.session_id] = _Place(key, start, sent_before)

    def leave(self, session_id: str) -> None:
        """The session's states are not wanted. Idempotent."""
        self._places.pop(session_id, None)

    def told(self, key: SessionKey, length: int) -> None:
        """The drafter is told the session's text up to `length`, ahead of any state that follows."""
        place = self._places.get(key.session_id)
        if place is not None and place.key == key:
            place.told = max(place.told, length)

    def take(self, taken_bytes: int) -> bool:
        """The drafter says that it has taken so many bytes in. False, and ignored, where that cannot be.

        It cannot where it is less than before, or more than was sent.
        """
        if not self.taken_bytes <= taken_bytes <= self.sent_bytes:
            return False
        self.taken_bytes = taken_bytes
        return True

    def paid(self) -> None:
        """What was owed has been paid for, and more may follow."""
        self.owed_bytes = 0

    def following(self, computed: Callable[[SessionKey], int | None]) -> list[Run]:
        """What the next message may hold; say `sent` of what is put into it.

        `computed`: up to which position a session's states are there; None where the stream has it no more.
        """
        places: list[_Place] = []
        missing: list[int] = []
        for place in list(self._places.values()):
            length = computed(place.key)
            if length is None:
                self.leave(place.key.session_id)
            elif (count := min(length, place.told - 1) - place.position) > 0:
                places.append(place)
                missing.append(count)
        if self.owed_bytes:
            return []
        under_way = self.sent_bytes - self.taken_bytes
        room = min(MAX_CHUNK_BYTES, self.window_bytes - under_way) // self.grant.position_bytes
        return [
            Run(place, place.position, count)
            for place, count in zip(places, shares(missing, room), strict=True)
            if count
        ]

    def sent(self, run: Run) -> bool:
        """The states of a run go down now. False, and nothing changes, where they are not wanted any more."""
        session_id = run.key.session_id
        if self._places.get(session_id) is not run.place:
            return False
        place = run.place
        again = max(0, min(place.position + run.count, place.sent_before) - place.position)
        place.position += run.count
        self.sent_bytes += run.count * self.grant.position_bytes
        self.owed_bytes += again * self.grant.position_bytes
        # It was its turn.
        self._places[session_id] = self._places.pop(session_id)
        return True


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """What each gets of `room`: equally much, none more than it wants; what is left goes to the first."""
    given = [0] * len(wanted)
    hungry = [index for index, most in enumerate(wanted) if most]
    while hungry and room > 0:
        each = room // len(hungry)
        if not each:
            # Less than one for each is left.
            hungry, each = hungry[:room], 1
        for index in hungry:
            more = min(each, wanted[index] - given[index])
            given[index] += more
            room -= more
        hungry = [index for index in hungry if given[index] < wanted[index]]
    return given
