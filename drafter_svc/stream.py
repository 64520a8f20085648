"""One Draft stream per verifier: joins and trees up, verdicts down; reconnects and joins again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TypeAlias

import grpc

from drafter_svc import metrics
from drafter_svc.config import DrafterSettings
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.rounds import Counters, Drafted, Rounds, TreeLimits
from drafter_svc.tenants import Tenants
from paceline.net import rpc, wire
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.v1 import verifier_pb2 as pb
from paceline.v1 import verifier_pb2_grpc

log = telemetry.logger(__name__)

# Ids per verified row asked back of the target; what the table of token recycling holds per entry.
FEEDBACK_TOP_K = 8
_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 3.0
_WELCOME_SECONDS = 10.0
# A verifier that answers Hello so will not answer otherwise later.
_FINAL = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}

Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.DraftRequest, pb.DraftResponse]"


class HandshakeRefusedError(Exception):
    """The two do not speak the same protocol: reconnecting cannot help."""


class VerifierLink:
    """Owns the stream to one verifier and the sessions drafted for there.

    `tenants(model_id, vocab_fingerprint, vocab_size)` gives what all links to verifiers of that model share.
    """

    def __init__(
        self,
        address: str,
        drafter_id: str,
        settings: DrafterSettings,
        identity: Identity | None,
        tenants: Callable[[str, str, int], Tenants],
        counters: Counters,
    ) -> None:
        self.address = address
        self.rounds = Rounds(counters)
        self._drafter_id = drafter_id
        self._settings = settings
        self._identity = identity
        self._tenants = tenants
        self._call: Call | None = None
        self._writing = asyncio.Lock()
        self._saying: set[asyncio.Task[None]] = set()
        self._used_at = time.monotonic()

    @property
    def live(self) -> bool:
        """Whether the verifier has welcomed this drafter on a stream that is still up."""
        return self._call is not None

    async def run(self) -> None:
        """Keep the stream up; returns when the verifier is given up. Cancel it to hang up."""
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

    async def attach(self, hypothesis: Hypothesis) -> None:
        """Draft for a session from now on; while the stream is down, from its return on."""
        self._used_at = time.monotonic()
        await self._say(self.rounds.attach(hypothesis))

    async def detach(self, session_id: str) -> None:
        """Forget a session and tell the verifier so."""
        if self.rounds.detach(session_id):
            await self._say(Drafted([], [session_id], []))

    def unused_seconds(self) -> float:
        """For how long there has been no session here."""
        if len(self.rounds):
            self._used_at = time.monotonic()
        return time.monotonic() - self._used_at

    async def drop_idle(self) -> None:
        """Leave sessions that the verifier has not spoken of for a long time."""
        for session_id in list(self.rounds.idle(self._settings.idle_seconds)):
            await self.detach(session_id)

    async def _converse(self) -> None:
        """One stream from Hello to its end; raises what ended it."""
        proxied = self._settings.use_http_proxy
        async with rpc.channel(
            self.address, Role.VERIFIER, self._identity, use_http_proxy=proxied
        ) as channel:
            call: Call = verifier_pb2_grpc.VerifierServiceStub(channel).Draft()
            try:
                welcome = await self._shake_hands(call)
                settings = self._settings
                tenants = self._tenants(welcome.model_id, welcome.vocab_fingerprint, welcome.vocab_size)
                limits = TreeLimits(
                    vocab_size=welcome.vocab_size,
                    nodes=min(settings.tree_nodes, welcome.max_tree_nodes),
                    depth=min(settings.tree_depth, welcome.max_tree_depth),
                )
                self._call = call
                log.info("verifier joined", verifier=self.address, model=welcome.model_id)
                await self._send(self.rounds.welcome(tenants, limits))
                while (response := await call.read()) is not grpc.aio.EOF:
                    await self._round(response)
            finally:
                call.cancel()

    async def _shake_hands(self, call: Call) -> pb.Welcome:
        hello = pb.Hello(
            protocol_version=PROTOCOL_VERSION, drafter_id=self._drafter_id, feedback_top_k=FEEDBACK_TOP_K
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

    async def _round(self, response: pb.DraftResponse) -> None:
        """The hot path: nothing is awaited between a verdict's arrival and its tree's departure."""
        vocab_size = self.rounds.vocab_size or 0
        start = time.perf_counter()
        verdicts = [wire.verdict_from_proto(verdict, vocab_size=vocab_size) for verdict in response.verdicts]
        drafted = self.rounds.verdicts(verdicts)
        if drafted:
            await self._send(drafted)
            metrics.ROUND_SECONDS.observe(time.perf_counter() - start)
        self.rounds.settle()
        for error in response.errors:
            # A session that has just ended may still be answered for a tree that crossed its end.
            if self.rounds.detach(error.session_id):
                log.warning(
                    "session forgotten",
                    session=error.session_id,
                    code=pb.SessionErrorCode.Name(error.code),
                    reason=error.message,
                )

    async def _say(self, drafted: Drafted) -> None:
        """`_send` for a caller who may be cancelled: what it has changed here must still be told.

        A write that is cancelled ends its whole stream, moreover, and so for all sessions.
        """
        sending = asyncio.create_task(self._send(drafted))
        self._saying.add(sending)
        sending.add_done_callback(self._saying.discard)
        await asyncio.shield(sending)

    async def _send(self, drafted: Drafted) -> None:
        """Write one message; a stream that has gone meanwhile is left to `run`, which joins again."""
        call = self._call
        if call is None or not drafted:
            return
        request = pb.DraftRequest(
            joins=[pb.Join(key=wire.key_to_proto(key), known_length=length) for key, length in drafted.joins],
            leaves=drafted.leaves,
            trees=[wire.tree_to_proto(key, base, tree) for key, base, tree in drafted.trees],
        )
        metrics.TREES.inc(len(drafted.trees))
        metrics.TREE_NODES.inc(sum(len(tree) for _, _, tree in drafted.trees))
        try:
            async with self._writing:
                await call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return
