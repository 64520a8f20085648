"""A verifier that plays known texts to drafters over real sockets, and checks all that they say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np

from paceline.features import NO_FEATURES, FeatureChunk, FeatureGrant
from paceline.net import rpc, wire
from paceline.session import SessionKey
from paceline.tree import TokenTree, TreeError, check
from paceline.v1 import session_pb2, tree_pb2, verifier_pb2, verifier_pb2_grpc

VOCAB = 64
MAX_NODES = 64
MAX_DEPTH = 6
TOP_K = 8
# What the scripted verifier's forward takes.
STEP_SECONDS = 0.002
# A text that repeats itself with a change, so that lookup has something to find and something to miss.
TEXT = [(i * 7 + (i // 23)) % 40 + 1 for i in range(23)] * 2 + [50, 51, 52] + list(range(1, 40)) * 3
# Most positions of a chunk of states.
CHUNK = 16


@dataclass
class Play:
    """One session at the scripted verifier: a known text, told verdict by verdict."""

    text: list[int]
    known: int
    epoch: int = 1
    budget: int = MAX_NODES
    joined: bool = False
    steps: int = 0
    paused: bool = False
    # Accepted ids, and how many of them each source had in a tree.
    accepted: int = 0
    by_source: dict[int, int] = field(default_factory=dict)
    # Trees that wait, as paths from the present text; of each the sources that have it.
    waiting: dict[tuple[int, ...], set[int]] = field(default_factory=dict)
    # Base lengths of the trees of each source, in the order in which they came.
    bases: dict[int, list[int]] = field(default_factory=dict)
    # The next position whose states are sent.
    states_from: int = NO_FEATURES
    # What each join said of states.
    joins: list[int] = field(default_factory=list)


class ScriptedVerifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Plays known texts; checks every tree by the project's own rules and walks it as acceptance does.

    `grant`: sends such hidden states, float32: of position p the ids after it, as many as they are wide, and
    the layer's number times `VOCAB` added to each.
    """

    def __init__(
        self,
        plays: Mapping[str, Play],
        *,
        refuse: str = "",
        version: int = 2,
        grant: FeatureGrant | None = None,
        weights: str = "w" * 32,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        self.plays = plays
        self.refuse = refuse
        self.version = version
        self.grant = grant
        self.weights = weights
        self.step_seconds = step_seconds
        self.hellos: list[verifier_pb2.Hello] = []
        self.leaves: list[str] = []
        self.streams = 0
        self.faults: list[str] = []
        # Bytes of states that were sent, and that were said to be taken in, on the last stream.
        self.sent_bytes = self.taken_bytes = 0
        # Chunks to send in the place of right ones.
        self.bad_chunks: list[verifier_pb2.FeatureChunk] = []
        # Whether states are sent at all.
        self.sends_states = True

    async def Draft(
        self,
        requests: AsyncIterator[verifier_pb2.DraftRequest],
        context: grpc.aio.ServicerContext[verifier_pb2.DraftRequest, verifier_pb2.DraftResponse],
    ) -> AsyncIterator[verifier_pb2.DraftResponse]:
        first = await anext(requests)
        self.hellos.append(first.hello)
        if self.refuse:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refuse)
        if first.hello.protocol_version > self.version:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"protocol version {first.hello.protocol_version} is not spoken here, only {self.version}",
            )
        self.streams += 1
        self.sent_bytes = self.taken_bytes = 0
        yield verifier_pb2.DraftResponse(
            welcome=verifier_pb2.Welcome(
                verifier_id="v",
                model_id="m",
                vocab_fingerprint="f",
                vocab_size=VOCAB,
                max_tree_nodes=MAX_NODES,
                max_tree_depth=MAX_DEPTH,
                weights_fingerprint=self.weights,
                features=wire.grant_to_proto(self.grant) if self.grant is not None else None,
            )
        )
        answers: asyncio.Queue[verifier_pb2.DraftResponse] = asyncio.Queue()
        listening = asyncio.create_task(self._listen(requests, answers))
        stepping = asyncio.create_task(self._keep_stepping(answers))
        try:
            while True:
                yield await answers.get()
        finally:
            listening.cancel()
            stepping.cancel()

    async def _listen(
        self,
        requests: AsyncIterator[verifier_pb2.DraftRequest],
        answers: asyncio.Queue[verifier_pb2.DraftResponse],
    ) -> None:
        async for request in requests:
            response = self._take(request)
            if response.verdicts or response.errors:
                answers.put_nowait(response)

    async def _keep_stepping(self, answers: asyncio.Queue[verifier_pb2.DraftResponse]) -> None:
        """Every session that has joined takes part in every step, with a tree or without one."""
        while True:
            await asyncio.sleep(self.step_seconds)
            verdicts = [
                self._step(session_id, play)
                for session_id, play in self.plays.items()
                if play.joined and not play.paused and play.known < len(play.text)
            ]
            if verdicts:
                answers.put_nowait(verifier_pb2.DraftResponse(verdicts=verdicts))
            if self.bad_chunks:
                answers.put_nowait(verifier_pb2.DraftResponse(features=[self.bad_chunks.pop()]))
            elif self.sends_states and (chunks := self._chunks()):
                answers.put_nowait(verifier_pb2.DraftResponse(features=chunks))

    def _take(self, request: verifier_pb2.DraftRequest) -> verifier_pb2.DraftResponse:
        response = verifier_pb2.DraftResponse()
        self.leaves.extend(request.leaves)
        if not self.taken_bytes <= request.features_taken <= self.sent_bytes:
            self.faults.append(f"{request.features_taken} bytes taken after {self.taken_bytes}")
        self.taken_bytes = request.features_taken
        for join in request.joins:
            play = self.plays.get(join.key.session_id)
            if play is None:
                response.errors.append(_error(join.key.session_id, verifier_pb2.SESSION_ERROR_CODE_NOT_FOUND))
            else:
                play.joined, play.epoch = True, join.key.epoch
                play.states_from = join.features_from
                play.joins.append(join.features_from)
                missing = play.text[join.known_length : play.known]
                response.verdicts.append(self._verdict(join.key.session_id, join.known_length, missing))
        for message in request.trees:
            key, base, tree = wire.tree_from_proto(message)
            if (play := self.plays.get(key.session_id)) is not None:
                self._offer(play, base, tree)
        return response

    def _offer(self, play: Play, base: int, tree: TokenTree) -> None:
        if not play.joined:
            self.faults.append("a tree before its join")
        self.check(tree)
        for source in set(tree.sources or (0,)):
            if play.bases.setdefault(source, [0])[-1] > base:
                self.faults.append(f"source {source} goes back to {base}")
            play.bases[source].append(base)
        fitting = tree.reroot(play.text[base : play.known])
        for node, path in enumerate(paths(fitting)):
            source = fitting.sources[node] if fitting.sources else 0
            play.waiting.setdefault(path, set()).add(source)

    def check(self, tree: TokenTree) -> None:
        """Note what is wrong with a tree, for the test to see."""
        try:
            sources = len(self.hellos[-1].sources)
            check(tree, vocab_size=VOCAB, max_nodes=MAX_NODES, max_depth=MAX_DEPTH, num_sources=sources)
        except TreeError as error:
            self.faults.append(str(error))

    def _step(self, session_id: str, play: Play) -> tree_pb2.Verdict:
        """Verify all that waits; what is left of it below the new text goes on waiting."""
        rest, base = play.text[play.known :], play.known
        nodes = sorted(play.waiting)
        accepted = 0
        while accepted < len(rest) - 1 and (path := tuple(rest[: accepted + 1])) in play.waiting:
            accepted += 1
            for source in play.waiting[path]:
                play.by_source[source] = play.by_source.get(source, 0) + 1
        play.known += accepted + 1
        play.steps += 1
        play.accepted += accepted
        committed = tuple(rest[: accepted + 1])
        place = {(): 0} | {path: row for row, path in enumerate(nodes, 1)}
        verdict = self._verdict(session_id, base, committed)
        verdict.accepted, verdict.drafted = accepted, len(nodes)
        verdict.feedback.row_token.extend([play.text[base - 1], *(path[-1] for path in nodes)])
        verdict.feedback.row_parent.extend([-1, *(place[path[:-1]] for path in nodes)])
        verdict.feedback.top_k = TOP_K
        for token in verdict.feedback.row_token:
            verdict.feedback.top_ids.extend((token + step) % VOCAB for step in range(1, TOP_K + 1))
        play.waiting = {
            path[len(committed) :]: sources
            for path, sources in play.waiting.items()
            if path[: len(committed)] == committed and len(path) > len(committed)
        }
        return verdict

    def _verdict(self, session_id: str, base: int, committed: Iterable[int]) -> tree_pb2.Verdict:
        play = self.plays[session_id]
        return tree_pb2.Verdict(
            key=session_pb2.SessionKey(session_id=session_id, epoch=play.epoch),
            base_length=base,
            committed=committed,
            draft_budget=play.budget,
            finished=play.known >= len(play.text),
        )

    def _chunks(self) -> list[verifier_pb2.FeatureChunk]:
        """The states that are due: of all positions that have a key, which the last committed one has not."""
        chunks = []
        for session_id, play in self.plays.items():
            if self.grant is None or not play.joined or play.known >= len(play.text):
                continue
            count = min(play.known - 1 - play.states_from, CHUNK)
            if count > 0 and self.sent_bytes - self.taken_bytes < self.hellos[-1].features[0].window_bytes:
                chunks.append(self._chunk(SessionKey(session_id, play.epoch), play, count))
                play.states_from += count
                self.sent_bytes += len(chunks[-1].states)
        return chunks

    def _chunk(self, key: SessionKey, play: Play, count: int) -> verifier_pb2.FeatureChunk:
        assert self.grant is not None
        text = [*play.text, *[0] * self.grant.width]
        rows = [
            [
                [layer * VOCAB + token for token in text[at + 1 :][: self.grant.width]]
                for layer in self.grant.layers
            ]
            for at in range(play.states_from, play.states_from + count)
        ]
        states = np.array(rows, dtype="<f4").tobytes()
        return wire.chunk_to_proto(FeatureChunk(key, play.states_from, count, states))


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    """The tokens from the root to each node."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((token,) if parent < 0 else (*found[parent], token))
    return found


def _error(session_id: str, code: verifier_pb2.SessionErrorCode) -> verifier_pb2.SessionError:
    return verifier_pb2.SessionError(session_id=session_id, code=code, message="scripted")


@asynccontextmanager
async def verifier(script: ScriptedVerifier, port: int = 0) -> AsyncIterator[rpc.RunningServer]:
    """Serve a script until the block is left; then nothing that the drafter said may have been wrong."""
    server = await rpc.start_server(
        lambda server: verifier_pb2_grpc.add_VerifierServiceServicer_to_server(script, server),
        services=["paceline.v1.VerifierService"],
        host="127.0.0.1",
        port=port,
    )
    try:
        yield server
    finally:
        await server.stop(0)
    assert not script.faults
