"""One Draft stream per verifier: joins and trees up, verdicts and states down. Reconnects; joins again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial

import grpc

from drafter_svc import metrics
from drafter_svc.config import DrafterSettings
from drafter_svc.draft_trace import DraftTrace
from drafter_svc.hello import WINDOW_BYTES, Call, HandshakeRefusedError, shake_hands, target_of
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.load import Load
from drafter_svc.methods.base import Ask, Target
from drafter_svc.pace import Pace
from drafter_svc.rounds import Counters, Message, Rounds, TreeLimits
from drafter_svc.runner import Drafts, Runner
from drafter_svc.states_in import StatesIn
from drafter_svc.thread_runner import ThreadRunner
from paceline.net import rpc, wire
from paceline.net.handshake import Hello
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.v1 import verifier_pb2 as pb
from paceline.v1 import verifier_pb2_grpc

log = telemetry.logger(__name__)

_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 3.0
# Work on the event loop that goes on for so long lets others have a turn.
_SLICE_SECONDS = 5e-4
# States that were taken in and of which the verifier was not told, before a message says nothing but this.
_TELL_BYTES = WINDOW_BYTES // 8


class VerifierLink:
    """Owns the stream to one verifier and the sessions drafted for there.

    `hello` says what all methods need; `text_first`: whether the first one computes nothing. `runners_for`
    gives their runners for a target, by the numbers of their sources, which all links to verifiers of that
    target share.
    """

    def __init__(
        self,
        address: str,
        settings: DrafterSettings,
        identity: Identity | None,
        hello: Hello,
        text_first: bool,
        runners_for: Callable[[Target], Awaitable[Sequence[Runner]]],
        counters: Counters,
        load: Load,
    ) -> None:
        self.address = address
        self.rounds = Rounds(counters)
        self._load = load
        self._settings = settings
        self._identity = identity
        self._hello = hello
        self._text_first = text_first
        self._runners_for = runners_for
        self._call: Call | None = None
        self._runners: Sequence[Runner] = ()
        self._states: StatesIn | None = None
        self._pace = Pace()
        self._writing = asyncio.Lock()
        self._saying: set[asyncio.Task[None]] = set()
        # By number of the source, for those that compute.
        self._drafting: dict[int, asyncio.Task[None]] = {}
        self._ahead: asyncio.Task[None] | None = None
        self._used_at = time.monotonic()

    @property
    def live(self) -> bool:
        """Whether the verifier has welcomed this drafter on a stream that is still up."""
        return self._call is not None

    async def run(self) -> None:
        """Keep the stream up; return when the verifier is given up. Cancel to close the stream."""
        backoff = _FIRST_BACKOFF_SECONDS
        lost_at = time.monotonic()
        while True:
            try:
                await self._converse()
                reason = "ended by the verifier"
            except HandshakeRefusedError as refused:
                log.error("verifier refused", verifier=self.address, reason=str(refused))
                return
            except grpc.aio.AioRpcError as lost:
                reason = f"{lost.code().name}: {lost.details()}"
            except (wire.WireError, TimeoutError) as lost:
                reason = f"{type(lost).__name__}: {lost}"
            if self.live:
                self._call, backoff, lost_at = None, _FIRST_BACKOFF_SECONDS, time.monotonic()
                log.warning("verifier lost", verifier=self.address, reason=reason)
            if not len(self.rounds) or time.monotonic() - lost_at > self._settings.rejoin_seconds:
                log.warning(
                    "verifier given up", verifier=self.address, reason=reason, sessions=len(self.rounds)
                )
                return
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    async def attach(self, hypothesis: Hypothesis, trace: DraftTrace | None = None) -> None:
        """Draft for a session from now on, or, while the stream is down, once it is up again."""
        self._used_at = time.monotonic()
        message = self.rounds.attach(hypothesis, trace)
        if self._call is not None:
            # Before anything is awaited: nobody else may send a tree before the join.
            self._add(message, 0, self.rounds.asks(0, only=hypothesis.key.session_id))
        await self._say(message)

    async def detach(self, session_id: str) -> None:
        """Forget a session and tell the verifier."""
        if self.rounds.detach(session_id):
            await self._say(Message(leaves=[session_id]))

    def unused_seconds(self) -> float:
        """Seconds since there was a session here."""
        if len(self.rounds):
            self._used_at = time.monotonic()
        return time.monotonic() - self._used_at

    async def drop_idle(self) -> None:
        """Leave sessions that got no verdict for `idle_seconds`."""
        for session_id in list(self.rounds.idle(self._settings.idle_seconds)):
            await self.detach(session_id)

    async def _converse(self) -> None:
        """Serve one stream from Hello to its end. Raises the error that ended it."""
        proxied = self._settings.use_http_proxy
        async with rpc.channel(
            self.address, Role.VERIFIER, self._identity, use_http_proxy=proxied
        ) as channel:
            stub = verifier_pb2_grpc.VerifierServiceStub(channel)
            call, welcome, version = await shake_hands(stub, self._hello, text_first=self._text_first)
            try:
                await self._welcome(call, welcome, version)
                while (response := await call.read()) is not grpc.aio.EOF:
                    await self._round(response)
            finally:
                for drafting in (*self._drafting.values(), self._ahead):
                    if drafting is not None:
                        drafting.cancel()
                self._drafting.clear()
                self._ahead = None
                self._states = None
                call.cancel()

    async def _welcome(self, call: Call, welcome: pb.Welcome, version: int) -> None:
        """Have the methods made for what is served, and join all sessions.

        Raises `HandshakeRefusedError` if no method fits.
        """
        target, settings = target_of(welcome), self._settings
        runners = await self._runners_for(target)
        # A verifier of version 1 knows one source of nodes.
        self._runners = runners = runners if version > 1 else runners[:1]
        if all(runner.computes for runner in runners):
            # There is nothing to draft with before.
            for runner in runners:
                await runner.made()
        if all(runner.absent for runner in runners):
            raise HandshakeRefusedError("; ".join(f"{each.source}: {each.absent}" for each in runners))
        if target.features is not None:
            self._states = StatesIn(target.features, self.rounds, runners, self._acknowledge)
        limits = TreeLimits.of(
            welcome.vocab_size,
            nodes=settings.tree_nodes,
            depth=settings.tree_depth,
            most_nodes=welcome.max_tree_nodes,
            most_depth=welcome.max_tree_depth,
        )
        self._call = call
        log.info("verifier joined", verifier=self.address, model=welcome.model_id)
        # Joins go first, before anything is awaited.
        await self._send(self.rounds.welcome(runners, limits))
        await self._send_trees(Message())

    async def _round(self, response: pb.DraftResponse) -> None:
        """Take verdicts in, then states. Trees of the text are written before anything else is awaited."""
        if response.verdicts:
            await self._take_verdicts(response)
        for error in response.errors:
            # A session that has just ended may still be answered for a tree that crossed its end.
            if self.rounds.detach(error.session_id):
                log.warning(
                    "session forgotten",
                    session=error.session_id,
                    code=pb.SessionErrorCode.Name(error.code),
                    reason=error.message,
                )
        if response.features:
            if self._states is None:
                raise wire.WireError("features", "no hidden states were granted")
            for chunk in response.features:
                self._states.take(chunk)
        self._draft_on_threads()

    async def _take_verdicts(self, response: pb.DraftResponse) -> None:
        self._pace.heard()
        vocab_size = self.rounds.vocab_size or 0
        message = Message()
        begun = time.perf_counter()
        for verdict in response.verdicts:
            with self._load.working():
                self.rounds.verdict(wire.verdict_from_proto(verdict, vocab_size=vocab_size), message)
            begun = await self._let_others(message, begun)
        self._draft_on_threads()
        await self._send_trees(message)
        for runner in self._runners:
            begun = time.perf_counter()
            while not runner.computes and runner.settle():
                begun = await self._let_others(message, begun)
        if self._settings.draft_ahead and (self._ahead is None or self._ahead.done()):
            self._ahead = asyncio.create_task(self._go_ahead(), name="draft ahead")

    async def _send_trees(self, message: Message) -> None:
        """Send a message, with trees of the text for all sessions that wait."""
        begun = time.perf_counter()
        for number, runner in enumerate(self._runners):
            while not runner.computes and (asks := self.rounds.asks(number, most=1)):
                self._add(message, number, asks)
                begun = await self._let_others(message, begun)
        await self._send(message)

    async def _go_ahead(self) -> None:
        """Send larger trees of the text, while the verifier verifies those that it has.

        None is held back while others have their turn: it may be that of a later verdict.
        """
        message, begun = Message(), time.perf_counter()
        for number, runner in enumerate(self._runners):
            for ask in () if runner.computes else self.rounds.asks_ahead(number):
                if not self._pace.leaves(0.0):
                    break
                self._add(message, number, [ask])
                if time.perf_counter() - begun > _SLICE_SECONDS:
                    await self._send(message)
                    await asyncio.sleep(0)
                    message, begun = Message(), time.perf_counter()
        await self._send(message)

    def _add(self, message: Message, number: int, asks: Sequence[Ask]) -> None:
        with self._load.working():
            self.rounds.deliver(self._runners[number].draft_now(asks), message, number)

    async def _let_others(self, message: Message, begun: float) -> float:
        """Let others have a turn if work that `begun` then has taken its time; returns when it goes on.

        What is said of joins is said before: it must not come after what the others say.
        """
        if time.perf_counter() - begun < _SLICE_SECONDS:
            return begun
        if message.joins or message.leaves:
            await self._send(message.split())
        await asyncio.sleep(0)
        return time.perf_counter()

    def _draft_on_threads(self) -> None:
        """Have the methods that compute draft for all sessions that wait; tasks send their trees later."""
        for number, runner in enumerate(self._runners):
            busy = self._drafting.get(number)
            if (
                isinstance(runner, ThreadRunner)
                and (busy is None or busy.done())
                and self.rounds.waiting(number)
            ):
                drafting = self._keep_drafting(number, runner)
                self._drafting[number] = asyncio.create_task(drafting, name=f"draft {runner.source} trees")

    async def _keep_drafting(self, number: int, runner: ThreadRunner) -> None:
        """Draft for the sessions that wait, and for those that came to wait meanwhile, until none does."""
        asked = self._ask(number, runner)
        try:
            while asked is not None:
                drafts = await asked
                # Before anything else, so that the next batch is of all that wait at all verifiers.
                asked = self._ask(number, runner)
                message, begun = Message(), time.perf_counter()
                for draft in drafts:
                    self.rounds.deliver([draft], message, number, sessions=len(drafts))
                    begun = await self._let_others(message, begun)
                await self._send(message)
                runner.settle()
                if asked is None:
                    asked = self._ask(number, runner) or self._ask_ahead(number, runner)
        finally:
            if asked is not None:
                asked.cancel()

    def _ask(self, number: int, runner: ThreadRunner) -> asyncio.Future[Drafts] | None:
        return runner.draft(partial(self.rounds.asks, number)) if self.rounds.waiting(number) else None

    def _ask_ahead(self, number: int, runner: ThreadRunner) -> asyncio.Future[Drafts] | None:
        if not self._settings.draft_ahead or not self._pace.leaves(runner.batch_seconds):
            return None
        if next(self.rounds.asks_ahead(number), None) is None:
            return None
        return runner.draft(lambda: list(self.rounds.asks_ahead(number)))

    def _acknowledge(self) -> None:
        """Methods have taken states in: say so if it has not been said of many."""
        if self._states is not None and self._states.untold >= _TELL_BYTES:
            self._start(self._send(Message(), acknowledge=True))

    async def _say(self, message: Message) -> None:
        """`_send` for a caller who may be cancelled: the verifier must be told of changes made here.

        Besides, cancelling a write would end the stream for all its sessions.
        """
        await asyncio.shield(self._start(self._send(message)))

    def _start(self, sending: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(sending)
        self._saying.add(task)
        task.add_done_callback(self._saying.discard)
        return task

    async def _send(self, message: Message, *, acknowledge: bool = False) -> None:
        """Write one message. If the stream is gone, `run` joins again; nothing is raised here."""
        call = self._call
        if call is None or not (message or acknowledge):
            return
        request = pb.DraftRequest(
            joins=[
                pb.Join(
                    key=wire.key_to_proto(join.key),
                    known_length=join.known_length,
                    features_from=join.features_from,
                )
                for join in message.joins
            ],
            leaves=message.leaves,
            # Of sessions that were not left meanwhile.
            trees=[
                wire.tree_to_proto(key, base, tree)
                for key, base, tree in message.trees
                if self.rounds.epoch(key.session_id) == key.epoch
            ],
            features_taken=self._states.tell() if self._states is not None else 0,
        )
        try:
            async with self._writing:
                await call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return
        if message.waited_since is not None:
            metrics.ROUND_SECONDS.observe(time.perf_counter() - message.waited_since)
