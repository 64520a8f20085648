"""Clients that ask without a pause, and judge every text by the undisturbed run's."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from paceline.client import GatewayError, Generation
from paceline.session import FinishReason
from tests.chaos.clients import Face, FailedError, Finished, Heard, Started, over_grpc, over_http
from tests.chaos.faults import Stage

CLIENTS = 16
# A session that takes longer hangs.
SESSION_SECONDS = 60.0
# From this share of its tokens on a session is in mid-stream, and so many before the end it is finishing.
_MID_STREAM = 1 / 3
_LAST_TOKENS = 3
_WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "hello", "world"]


def asked() -> list[Generation]:
    """What clients ask for: greedy and seeded, short and long, with speculation and without."""
    random = Random(0)
    generations = []
    for number in range(24):
        # Every third prompt takes several steps to read.
        words = random.choices(_WORDS, k=400 if number % 3 == 0 else random.randint(3, 30))
        greedy = number % 2 == 0
        generations.append(
            Generation(
                text=" ".join(words),
                max_tokens=random.randint(40, 150),
                temperature=0.0 if greedy else 0.8,
                top_k=0 if greedy or number % 4 == 1 else 40,
                top_p=1.0 if greedy or number % 4 == 1 else 0.95,
                seed=number,
                speculation=number % 5 != 0,
            )
        )
    return generations


@dataclass(frozen=True, slots=True)
class Text:
    """What a session came to."""

    text: str
    token_ids: tuple[int, ...]
    reason: FinishReason


@dataclass(slots=True, eq=False)
class Session:
    """One session as its client saw it."""

    asked: Generation
    face: Face = Face.GRPC
    started: Started | None = None
    heard: list[Heard] = field(default_factory=list)
    # When each piece that held a token came.
    heard_at: list[float] = field(default_factory=list)
    finished: Finished | None = None
    ended_at: float | None = None
    error: str = ""
    stage: Stage = Stage.QUEUED

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.heard)

    def text(self) -> Text:
        """Raises `AssertionError` where it did not end well. Over HTTP no ids are told."""
        assert self.finished is not None, self.error
        ids = tuple(token for piece in self.heard for token in piece.token_ids)
        return Text("".join(piece.text for piece in self.heard), ids, self.finished.reason)

    def longest_pause(self, since: float) -> float:
        """Seconds between two tokens of which the later came after `since`; 0 where no two did."""
        pauses = [
            after - before
            for before, after in zip(self.heard_at, self.heard_at[1:], strict=False)
            if after > since
        ]
        return max(pauses, default=0.0)

    def judge(self, expected: Text) -> str:
        """Empty, or what is wrong with it: lost, duplicated or wrong, and how."""
        if self.finished is None or self.started is None:
            return f"lost: {self.error or 'no end'}"
        position = self.started.prompt_tokens
        for piece in self.heard:
            if piece.position != position:
                what = "duplicated" if piece.position < position else "lost"
                return f"{what}: position {piece.position} after {position - 1}"
            position += piece.tokens
        text = self.text()
        told = self.finished.tokens
        if self.face is Face.HTTP:
            text = replace(text, token_ids=expected.token_ids)
        if text == expected and told in (None, len(expected.token_ids)):
            return ""
        if told is not None and told != len(expected.token_ids):
            return f"lost or duplicated: {told} tokens for {len(expected.token_ids)}"
        if text.token_ids != expected.token_ids[: len(text.token_ids)]:
            return f"wrong: {text.token_ids} is not {expected.token_ids}"
        if len(text.token_ids) < len(expected.token_ids):
            return f"lost: {len(text.token_ids)} of {len(expected.token_ids)} tokens"
        return f"wrong: {text.text!r} ({text.reason}) is not {expected.text!r} ({expected.reason})"


class Load:
    """Sixteen clients, each with one session at a time. `running` are those of now, `ended` all others."""

    def __init__(self, gateways: Mapping[Face, Sequence[str]], seed: int) -> None:
        """`gateways`: their addresses. Every session is asked of another one first, and goes on at any."""
        self.running: set[Session] = set()
        self.ended: list[Session] = []
        # When a token was last said to be durable.
        self.durable_at = 0.0
        self.expected: dict[Generation, Text] = {}
        self._addresses = {
            face: itertools.cycle([[*these[at:], *these[:at]] for at in range(len(these))])
            for face, these in gateways.items()
        }
        self._seed = seed
        self._asking: list[asyncio.Task[None]] = []
        self._stopping = False
        self._awaited: tuple[Stage, Callable[[], None]] | None = None

    async def learn(self) -> None:
        """Let every text be told undisturbed."""
        plain = await asyncio.gather(*(self._ask(each, Face.GRPC) for each in asked()))
        for session in plain:
            self.expected[session.asked] = session.text()
            text = session.text().text
            if len(self.expected) % 6 == 0:
                # So that text that is held back is moved, too.
                stop = text[len(text) * 3 // 4 :][:3]
                stopped = await self._ask(replace(session.asked, stop=(stop,)), Face.GRPC)
                self.expected[stopped.asked] = stopped.text()
        self.ended.clear()

    def start(self) -> None:
        """Ask from now on."""
        for number in range(CLIENTS):
            face = (Face.GRPC, Face.HTTP)[number % 2]
            asking = self._ask_on(Random(self._seed * CLIENTS + number), face)
            self._asking.append(asyncio.create_task(asking))

    async def stop(self) -> None:
        """Let running sessions end, and begin no more."""
        self._stopping = True
        await asyncio.gather(*self._asking)

    def when(self, stage: Stage, act: Callable[[], None]) -> None:
        """Call `act` the moment that a session comes to `stage`, once."""
        self._awaited = (stage, act)

    async def _ask_on(self, random: Random, face: Face) -> None:
        while not self._stopping:
            await self._ask(random.choice(list(self.expected)), face)

    async def _ask(self, generation: Generation, face: Face) -> Session:
        session = Session(generation, face)
        self.running.add(session)
        reading = asyncio.create_task(self._read(session))
        # Until the request is on its way.
        await asyncio.sleep(0)
        self._comes_to(session, Stage.QUEUED)
        try:
            await reading
        except GatewayError as error:
            session.error = f"{error.code.name}: {error}"
        except FailedError as error:
            session.error = str(error)
        session.ended_at = time.monotonic()
        self.running.discard(session)
        self.ended.append(session)
        return session

    async def _read(self, session: Session) -> None:
        client = {Face.GRPC: over_grpc, Face.HTTP: over_http}[session.face]
        async for event in client(next(self._addresses[session.face]), session.asked, SESSION_SECONDS):
            if isinstance(event, Started):
                session.started = event
                self._comes_to(session, Stage.PREFILL)
            elif isinstance(event, Finished):
                session.finished = event
            else:
                self._hear(session, event)

    def _hear(self, session: Session, piece: Heard) -> None:
        session.heard.append(piece)
        if not piece.tokens:
            return
        session.heard_at.append(time.monotonic())
        if piece.durable:
            self.durable_at = session.heard_at[-1]
        tokens = session.tokens
        expected = self.expected.get(session.asked)
        whole = len(expected.token_ids) if expected else 0
        if tokens == piece.tokens:
            self._comes_to(session, Stage.FIRST_TOKEN)
        elif tokens >= whole - _LAST_TOKENS:
            self._comes_to(session, Stage.FINISHING)
        elif tokens >= whole * _MID_STREAM:
            self._comes_to(session, Stage.MID_STREAM)

    def _comes_to(self, session: Session, stage: Stage) -> None:
        if session.stage is stage is not Stage.QUEUED:
            return
        session.stage = stage
        if self._awaited is not None and self._awaited[0] is stage:
            _, act = self._awaited
            self._awaited = None
            act()
