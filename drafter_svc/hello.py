"""The beginning of a stream: what the methods need is said, and what the verifier serves is heard."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import grpc

from drafter_svc.methods.base import FeatureWant, MethodFactory, Target
from paceline.features import MAX_LAYERS, MAX_REQUESTS, FeatureRequest
from paceline.net import wire
from paceline.net.handshake import PROTOCOL_VERSION, Hello
from paceline.service import telemetry
from paceline.v1 import verifier_pb2 as pb
from paceline.v1 import verifier_pb2_grpc

log = telemetry.logger(__name__)

# Bytes of hidden states that may be under way to this drafter from one verifier.
WINDOW_BYTES = 16 << 20
_WELCOME_SECONDS = 10.0
# Answers to Hello that trying again does not change.
_FINAL = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}
# How a verifier of version 1 refuses a later one.
_OTHER_VERSION = "protocol version"

Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.DraftRequest, pb.DraftResponse]"


class HandshakeRefusedError(Exception):
    """The verifier refuses this drafter. Reconnecting does not help."""


def hello(drafter_id: str, factories: Sequence[MethodFactory]) -> Hello:
    """What all the methods need together.

    A vocabulary is named only where none of the methods can draft for another.
    """
    needs = [factory.needs for factory in factories]
    vocabularies = {each.vocab_fingerprint for each in needs}
    return Hello(
        protocol_version=PROTOCOL_VERSION,
        drafter_id=drafter_id,
        vocab_fingerprint=vocabularies.pop() if len(vocabularies) == 1 else "",
        feedback_top_k=max(each.feedback_top_k for each in needs),
        features=_requests([want for each in needs for want in each.features]),
        sources=tuple(factory.name for factory in factories),
    )


def target_of(welcome: pb.Welcome) -> Target:
    """The model that the verifier serves. Raises `WireError` for a grant that makes no sense."""
    granted = welcome.HasField("features")
    return Target(
        welcome.model_id,
        welcome.vocab_fingerprint,
        welcome.vocab_size,
        welcome.weights_fingerprint,
        wire.grant_from_proto(welcome.features) if granted else None,
    )


async def shake_hands(
    stub: verifier_pb2_grpc.VerifierServiceStub, said: Hello, *, text_first: bool
) -> tuple[Call, pb.Welcome, int]:
    """Open a stream; returns it with its Welcome and the version of the protocol that is spoken on it.

    To a verifier of version 1 that version is spoken, for the text's trees alone, if they are of source 0.
    Raises `HandshakeRefusedError`, `TimeoutError` or the call's own error.
    """
    try:
        return await _say(stub, said)
    except HandshakeRefusedError as refused:
        if not str(refused).startswith(_OTHER_VERSION):
            raise
        if not text_first:
            raise HandshakeRefusedError(
                f"{refused}; of this drafter's methods only those from the text speak to an older verifier: "
                "upgrade it, or have lookup+recycling in --method, too"
            ) from refused
        log.warning("the verifier is of an older release: only the text is drafted from", reason=str(refused))
    old = Hello(protocol_version=1, drafter_id=said.drafter_id, feedback_top_k=said.feedback_top_k)
    return await _say(stub, old)


async def _say(stub: verifier_pb2_grpc.VerifierServiceStub, said: Hello) -> tuple[Call, pb.Welcome, int]:
    call: Call = stub.Draft()
    try:
        async with asyncio.timeout(_WELCOME_SECONDS):
            await call.write(pb.DraftRequest(hello=wire.hello_to_proto(said)))
            answer = await call.read()
        if answer is grpc.aio.EOF or not answer.HasField("welcome") or not answer.welcome.vocab_size:
            raise HandshakeRefusedError("its first message is no Welcome with a vocabulary size")
    except grpc.aio.AioRpcError as error:
        if error.code() in _FINAL:
            raise HandshakeRefusedError(error.details()) from error
        raise
    except BaseException:
        call.cancel()
        raise
    return call, answer.welcome, said.protocol_version


def _requests(wants: Sequence[FeatureWant]) -> tuple[FeatureRequest, ...]:
    """One request for each target's weights, of all layers that any method wants of it."""
    layers: dict[str, set[int]] = {}
    for want in wants:
        wanted = layers.setdefault(want.weights_fingerprint, set())
        if len(wanted | set(want.layers)) <= MAX_LAYERS:
            wanted.update(want.layers)
    requests = [
        FeatureRequest(tuple(sorted(wanted)), WINDOW_BYTES, fingerprint)
        for fingerprint, wanted in layers.items()
    ]
    if len(requests) > MAX_REQUESTS:
        log.warning("more targets' hidden states are wanted than a Hello holds", targets=len(requests))
    return tuple(requests[:MAX_REQUESTS])
