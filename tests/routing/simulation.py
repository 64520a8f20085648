"""A fleet in simulated time: the verifiers' prefix caches, routing and what it knows are the real ones.

The unit of texts is a block of 128 tokens: a prompt's blocks stand for its ids, and blocks of KV hold one of
them. Steps are those of a verifier in outline: all decoding sessions' rows, and prompts' in order of arrival.
"""

from __future__ import annotations

import heapq
import json
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gateway.routing.backlog import Backlog
from gateway.routing.texts import HeldTexts, RoutedText
from gateway.routing.verifiers import choose_verifier
from gateway.routing.views import VerifierView
from paceline.engine.blocks import BlockAllocator, OutOfBlocksError

MODEL = "m"
MIX = Path(__file__).with_name("mix.jsonl")
BLOCK = 128
# Seconds of an 8 GB model on one large GPU, about: a block of a prompt, a step, and each session in it.
PROMPT_BLOCK, STEP, SESSION = 0.02, 0.025, 0.0004
# Prompts' blocks in one step: alone, and beside sessions that decode.
ALONE, BESIDE = 4, 2
MAX_SESSIONS = 16
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """A line of the mix: see `record_mix`."""

    at: float
    after: int
    answer: int
    blocks: tuple[int, ...]


@dataclass(slots=True)
class News:
    """What a verifier says of its texts."""

    instance: int
    cursor: int
    anew: bool
    block_size: int
    added: Sequence[int]
    removed: Sequence[int]


@dataclass(slots=True)
class Session:
    """A request that is being served. `left`: tokens still to come."""

    number: int
    request: Request
    came: float
    left: int
    text: RoutedText
    table: list[int] = field(default_factory=list)
    computed: int = 0


class Verifier:
    """One verifier, and what the gateway knows of it."""

    def __init__(self, name: str, kv_blocks: int, clock: Callable[[], float]) -> None:
        self.name = name
        self.allocator = BlockAllocator(kv_blocks, 1)
        self.sessions: deque[Session] = deque()
        self.busy = False
        self.texts = HeldTexts(clock)
        self.backlog = Backlog(clock)
        self._told_kv = kv_blocks

    def view(self) -> VerifierView:
        """As `gateway.fleet` makes it."""
        return VerifierView(
            self.name,
            healthy=True,
            draining=False,
            model_id=MODEL,
            vocab_size=1,
            max_context=1,
            sessions=len(self.sessions),
            max_sessions=MAX_SESSIONS,
            kv_free=max(0, self._told_kv - self.backlog.sent_tokens),
            waiting_tokens=self.backlog.tokens,
            prompt_token_seconds=PROMPT_BLOCK,
            step_seconds=STEP + len(self.sessions) * SESSION,
            session_seconds=SESSION,
            texts=self.texts,
        )

    def poll(self) -> None:
        """Its status and news of its texts reach the gateway."""
        self.backlog.asking()
        waiting = sum(len(session.request.blocks) - session.computed for session in self.sessions)
        self.backlog.heard(waiting, PROMPT_BLOCK)
        self._told_kv = self.allocator.free
        kept = self.allocator.kept
        assert kept is not None
        told = kept.since(self.texts.cursor if self.texts.instance == kept.instance else None, 4096)
        self.texts.hear(News(kept.instance, told.cursor, told.anew, 1, told.added, told.removed))

    def step(self) -> tuple[float, list[Session], list[Session], int, int]:
        """Seconds of the next step, sessions with their first token, those that end; blocks asked, found."""
        decoding = [each for each in self.sessions if each.computed == len(each.request.blocks)]
        room = BESIDE if decoding else ALONE
        first: list[Session] = []
        rows = asked = found = 0
        for session in self.sessions:
            blocks = session.request.blocks
            if session.computed == len(blocks) or rows == room:
                continue
            if not session.table:
                session.computed = self.allocator.adopt(session.table, blocks)
                asked += len(blocks)
                found += session.computed
            count = min(room - rows, len(blocks) - session.computed)
            try:
                self.allocator.extend(session.table, session.computed + count)
            except OutOfBlocksError:
                break
            rows += count
            session.computed += count
            self.allocator.keep(session.table, blocks, session.computed)
            if session.computed == len(blocks):
                first.append(session)
        self.allocator.take_tasks()
        for session in decoding:
            session.left -= 1
        ended = [session for session in decoding if session.left <= 0]
        for session in ended:
            self.allocator.release(session.table)
            self.sessions.remove(session)
        return STEP + SESSION * len(self.sessions) + PROMPT_BLOCK * rows, first, ended, asked, found


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds to the first token of each request, and the share of prompts' blocks that was cached."""

    seconds: tuple[float, ...]
    hits: float

    @property
    def mean(self) -> float:
        return sum(self.seconds) / len(self.seconds)

    @property
    def p95(self) -> float:
        return sorted(self.seconds)[int(0.95 * len(self.seconds))]


# Chooses a verifier for a text among those with a free place, of which there is at least one.
Policy = Callable[[Sequence[Verifier], RoutedText], Verifier]


def predicted(verifiers: Sequence[Verifier], text: RoutedText) -> Verifier:
    """The gateway's own rule."""
    choice = choose_verifier([each.view() for each in verifiers], MODEL, text)
    assert choice is not None
    return next(each for each in verifiers if each.name == choice.verifier.address)


def least_loaded(verifiers: Sequence[Verifier], text: RoutedText) -> Verifier:
    """The fewest sessions."""
    return min(verifiers, key=lambda each: (len(each.sessions), each.name))


def at_random(seed: int) -> Policy:
    """Any, drawn by a seed."""
    chance = random.Random(seed)
    return lambda verifiers, text: chance.choice(list(verifiers))


def read_mix() -> list[Request]:
    """The recorded requests."""
    lines = [json.loads(line) for line in MIX.read_text().splitlines()]
    return [Request(each["at"], each["after"], each["answer"], tuple(each["blocks"])) for each in lines]


class Simulation:
    """One run of a mix."""

    def __init__(
        self, requests: Sequence[Request], policy: Policy, *, verifiers: int, kv_blocks: int, speed: float
    ) -> None:
        """`speed`: how many times faster than recorded requests come."""
        self._requests = requests
        self._policy = policy
        self._speed = speed
        self._now = 0.0
        self._verifiers = [Verifier(f"v{each}", kv_blocks, lambda: self._now) for each in range(verifiers)]
        self._line: deque[Session] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._seconds: dict[int, float] = {}
        self._ended = self._asked = self._found = 0
        self._next = {each.after: number for number, each in enumerate(requests) if each.after >= 0}

    def run(self) -> Outcome:
        """Serve everything."""
        for number, request in enumerate(self._requests):
            if request.after < 0:
                self._at(request.at / self._speed, partial(self._come, number))
        self._poll()
        while self._ended < len(self._requests):
            self._now, _, do = heapq.heappop(self._events)
            do()
        seconds = tuple(self._seconds[number] for number in range(len(self._requests)))
        return Outcome(seconds, self._found / self._asked)

    def _at(self, when: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, do))

    def _poll(self) -> None:
        for verifier in self._verifiers:
            verifier.poll()
        self._at(self._now + POLL_SECONDS, self._poll)

    def _come(self, number: int) -> None:
        request = self._requests[number]
        self._line.append(Session(number, request, self._now, request.answer, RoutedText(request.blocks)))
        self._give_out()

    def _give_out(self) -> None:
        while self._line:
            able = [each for each in self._verifiers if len(each.sessions) < MAX_SESSIONS]
            if not able:
                return
            session = self._line.popleft()
            verifier = self._policy(able, session.text)
            verifier.backlog.send(session.text.tokens - verifier.texts.held_tokens(session.text))
            verifier.texts.send(session.text)
            verifier.sessions.append(session)
            if not verifier.busy:
                self._step(verifier)

    def _step(self, verifier: Verifier) -> None:
        verifier.busy = bool(verifier.sessions)
        if not verifier.busy:
            return
        seconds, first, ended, asked, found = verifier.step()
        self._asked += asked
        self._found += found
        self._at(self._now + seconds, lambda: self._stepped(verifier, first, ended))

    def _stepped(self, verifier: Verifier, first: Iterable[Session], ended: Iterable[Session]) -> None:
        for session in first:
            self._seconds[session.number] = self._now - session.came
        for session in ended:
            self._ended += 1
            follower = self._next.get(session.number)
            if follower is not None:
                pause = self._requests[follower].at / self._speed
                self._at(self._now + pause, partial(self._come, follower))
        self._give_out()
        self._step(verifier)
