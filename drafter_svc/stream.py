"""One Draft stream per verifier: joins and trees up, verdicts down. Reconnects, and joins again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TypeAlias

import grpc

from drafter_svc import metrics
from drafter_svc.config import DrafterSettings
from drafter_svc.draft_trace import DraftTrace
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.load import Load
from drafter_svc.methods.base import Needs, Target
from drafter_svc.rounds import Counters, Message, Rounds, TreeLimits
from drafter_svc.runner import Runner
from paceline.net import rpc, wire
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.v1 import verifier_pb2 as pb
from paceline.v1 import verifier_pb2_grpc

log = telemetry.logger(__name__)

_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 3.0
_WELCOME_SECONDS = 10.0
# Answers to Hello that trying again does not change.
_FINAL = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}

Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.DraftRequest, pb.DraftResponse]"


class HandshakeRefusedError(Exception):
    """The verifier refuses this drafter. Reconnecting does not help."""


class VerifierLink:
    """Owns the stream to one verifier and the sessions drafted for there.

    The Hello asks for what the method `needs`. `runner_for` gives the method's runner for a target, which all
    links to verifiers of that target share.
    """

    def __init__(
        self,
        address: str,
        drafter_id: str,
        settings: DrafterSettings,
        identity: Identity | None,
        needs: Needs,
        runner_for: Callable[[Target], Runner],
        counters: Counters,
        load: Load,
    ) -> None:
        self.address = address
        self.rounds = Rounds(counters)
        self._load = load
        self._drafter_id = drafter_id
        self._settings = settings
        self._identity = identity
        self._needs = needs
        self._runner_for = runner_for
        self._call: Call | None = None
        self._runner: Runner | None = None
        self._writing = asyncio.Lock()
        self._saying: set[asyncio.Task[None]] = set()
        self._drafting: asyncio.Task[None] | None = None
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
        await self._say(self.rounds.attach(hypothesis, trace))

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
            call: Call = verifier_pb2_grpc.VerifierServiceStub(channel).Draft()
            try:
                welcome = await _shake_hands(call, self._drafter_id, self._needs)
                settings = self._settings
                target = Target(welcome.model_id, welcome.vocab_fingerprint, welcome.vocab_size)
                limits = TreeLimits(
                    vocab_size=welcome.vocab_size,
                    nodes=min(settings.tree_nodes, welcome.max_tree_nodes),
                    depth=min(settings.tree_depth, welcome.max_tree_depth),
                )
                self._call, self._runner = call, self._runner_for(target)
                log.info("verifier joined", verifier=self.address, model=welcome.model_id)
                await self._send(self._with_trees(self.rounds.welcome(self._runner, limits)))
                while (response := await call.read()) is not grpc.aio.EOF:
                    await self._round(response)
            finally:
                if self._drafting is not None:
                    self._drafting.cancel()
                    self._drafting = None
                call.cancel()

    async def _round(self, response: pb.DraftResponse) -> None:
        """Take verdicts in. Unless the method computes, nothing is awaited before their trees are written."""
        vocab_size = self.rounds.vocab_size or 0
        start = time.perf_counter()
        with self._load.working():
            verdicts = [
                wire.verdict_from_proto(verdict, vocab_size=vocab_size) for verdict in response.verdicts
            ]
            message = self._with_trees(self.rounds.verdicts(verdicts))
        if message:
            await self._send(message)
            if message.trees:
                metrics.ROUND_SECONDS.observe(time.perf_counter() - start)
        if self._runner is not None:
            self._runner.settle()
        for error in response.errors:
            # A session that has just ended may still be answered for a tree that crossed its end.
            if self.rounds.detach(error.session_id):
                log.warning(
                    "session forgotten",
                    session=error.session_id,
                    code=pb.SessionErrorCode.Name(error.code),
                    reason=error.message,
                )

    def _with_trees(self, message: Message) -> Message:
        """Add trees for all sessions that wait. If the method computes, a task sends them later."""
        runner = self._runner
        if self._call is None or runner is None:
            return message
        if not runner.computes:
            return self.rounds.deliver(runner.draft_now(self.rounds.asks()), message)
        if self.rounds.waiting and (self._drafting is None or self._drafting.done()):
            self._drafting = asyncio.create_task(self._keep_drafting(runner), name="draft trees")
        return message

    async def _keep_drafting(self, runner: Runner) -> None:
        """Draft for the sessions that wait, and for those that came to wait meanwhile, until none does."""
        while self.rounds.waiting:
            start = self.rounds.waiting_since
            drafts = await runner.draft(self.rounds.asks)
            await self._send(self.rounds.deliver(drafts, Message()))
            metrics.ROUND_SECONDS.observe(time.perf_counter() - start)
            runner.settle()

    async def _say(self, message: Message) -> None:
        """`_send` for a caller who may be cancelled: the verifier must be told of changes made here.

        Besides, cancelling a write would end the stream for all its sessions.
        """
        sending = asyncio.create_task(self._send(self._with_trees(message)))
        self._saying.add(sending)
        sending.add_done_callback(self._saying.discard)
        await asyncio.shield(sending)

    async def _send(self, message: Message) -> None:
        """Write one message. If the stream is gone, `run` joins again; nothing is raised here."""
        call = self._call
        if call is None or not message:
            return
        request = pb.DraftRequest(
            joins=[pb.Join(key=wire.key_to_proto(key), known_length=length) for key, length in message.joins],
            leaves=message.leaves,
            trees=[wire.tree_to_proto(key, base, tree) for key, base, tree in message.trees],
        )
        metrics.TREES.inc(len(message.trees))
        metrics.TREE_NODES.inc(sum(len(tree) for _, _, tree in message.trees))
        try:
            async with self._writing:
                await call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return


async def _shake_hands(call: Call, drafter_id: str, needs: Needs) -> pb.Welcome:
    """Say Hello. Raises `HandshakeRefusedError`, `TimeoutError` or the call's own error."""
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION, drafter_id=drafter_id, feedback_top_k=needs.feedback_top_k
    )
    try:
        async with asyncio.timeout(_WELCOME_SECONDS):
            await call.write(pb.DraftRequest(hello=hello))
            first = await call.read()
    except grpc.aio.AioRpcError as error:
        if error.code() in _FINAL:
            raise HandshakeRefusedError(error.details()) from error
        raise
    if first is grpc.aio.EOF or not first.HasField("welcome") or not first.welcome.vocab_size:
        raise HandshakeRefusedError("its first message is no Welcome with a vocabulary size")
    welcome: pb.Welcome = first.welcome
    return welcome
