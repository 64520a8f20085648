"""gRPC calls with hostile messages, deadlines, metadata and endings; and what they were answered."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from hypothesis import strategies as st

from paceline.features import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, NO_FEATURES
from paceline.net.handshake import SPOKEN_VERSIONS
from paceline.v1 import drafter_pb2, gateway_pb2, session_pb2, tree_pb2, verifier_pb2
from tests.fuzz.bystanders import VICTIM, VICTIM_EPOCH, VICTIM_LENGTH
from tests.fuzz.messages import Plausible, encoded
from tests.pods import MODEL, Pods

VOCAB = 512
ANSWER_SECONDS = 60.0

SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service
    for file in (gateway_pb2, verifier_pb2, drafter_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)

# What a service may answer to bad input; UNAVAILABLE is for faults, of which there are none.
_DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.OUT_OF_RANGE,
}


@dataclass(frozen=True)
class Call:
    """One call: its messages, and how the client ends it."""

    method: str
    messages: tuple[bytes, ...]
    streamed: bool
    # Cancel after so many answers; None reads to the end.
    cut: int | None
    # Seconds; None allows all the time there is.
    deadline: float | None
    metadata: tuple[tuple[str, str], ...]


def calls(service: ServiceDescriptor, plausible: Plausible) -> st.SearchStrategy[Call]:
    """Calls of all methods of a service."""
    # Of methods that take anything more can be said.
    weighted = [method for method in service.methods for _ in range(4 if method.input_type.fields else 1)]
    return st.one_of([_calls(method, plausible) for method in weighted])


def _calls(method: MethodDescriptor, plausible: Plausible) -> st.SearchStrategy[Call]:
    message = encoded(method.input_type, plausible)
    if method.client_streaming:
        messages = st.lists(message, max_size=6)
        if method.input_type is verifier_pb2.DraftRequest.DESCRIPTOR:
            first = _HELLOS.map(lambda hello: verifier_pb2.DraftRequest(hello=hello).SerializeToString())
            messages = st.one_of(
                messages, st.tuples(first, messages).map(lambda parts: [parts[0], *parts[1]])
            )
    else:
        messages = message.map(lambda one: [one])
    texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)
    names = st.sampled_from(
        ["traceparent", "tracestate", "baggage", "authorization", "last-event-id", "x-odd"]
    )
    return st.builds(
        Call,
        method=st.just(f"/{method.containing_service.full_name}/{method.name}"),
        messages=messages.map(tuple),
        streamed=st.just(method.client_streaming),
        cut=st.sampled_from([None, None, None, 0, 1, 3]),
        deadline=st.sampled_from([None, None, None, None, 0.2, 0.01, 0.0001]),
        metadata=st.lists(st.tuples(names, texts), max_size=2).map(tuple),
    )


def send(channel: grpc.Channel, call: Call, victim: bytes) -> str:
    """Make a call, naming `victim` where it names the victim; gives the name of its answer.

    Fails when that is none that bad input may get, or does not come. Not by gRPC's asyncio client: that
    one puts errors of its own in place of an answer that comes before all has been said.
    """
    messages = [message.replace(VICTIM, victim) for message in call.messages]
    timeout = call.deadline or ANSWER_SECONDS
    if call.streamed:
        made = channel.stream_stream(call.method)(iter(messages), timeout=timeout, metadata=call.metadata)
    else:
        made = channel.unary_stream(call.method)(messages[0], timeout=timeout, metadata=call.metadata)
    try:
        answers = itertools.islice(made, call.cut)
        if sum(1 for _ in answers) == call.cut:
            return "cut off"
    except grpc.RpcError:
        pass
    finally:
        made.cancel()
    code = made.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and call.deadline is not None:
        return "deadline"
    assert code in _DOCUMENTED, f"{code.name}: {made.details()}"
    return str(code.name)


# Of states that the verifier keeps, and of others.
_FEATURES = st.builds(
    verifier_pb2.FeatureRequest,
    layers=st.sampled_from([[0], [2], [0, 2], [0, 1, 2]]),
    window_bytes=st.one_of(st.just(MIN_WINDOW_BYTES), st.integers(MIN_WINDOW_BYTES, MAX_WINDOW_BYTES)),
    weights_fingerprint=st.sampled_from(["", "", "0" * 32]),
)
_HELLOS = st.builds(
    verifier_pb2.Hello,
    protocol_version=st.sampled_from([*SPOKEN_VERSIONS, SPOKEN_VERSIONS[-1]]),
    drafter_id=st.integers(0, 10**9).map(str),
    feedback_top_k=st.integers(0, 32),
    features=st.lists(_FEATURES, max_size=3),
    sources=st.lists(st.sampled_from(["text", "draft", "eagle"]), max_size=3, unique=True),
)


def plausible(pods: Pods) -> Plausible:
    """What the fields hold when nobody means harm."""
    ids = st.integers(0, VOCAB - 1)
    few = st.integers(1, 8)
    base = st.one_of(st.integers(2, VICTIM_LENGTH), st.integers(2, 20))
    logits: Plausible = {
        "typical_p": st.floats(0.1, 1),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.01, 100),
        "allowed_token_ids": ids,
        "LogitBiasEntry.key": ids,
        "LogitBiasEntry.value": st.floats(-100, 100),
    }
    return {
        **_fields(gateway_pb2.GenerateRequest, model=st.sampled_from(["", MODEL]), max_tokens=few),
        **_fields(
            gateway_pb2.GenerateRequest,
            temperature=st.floats(0, 2, width=32),
            top_k=st.integers(0, VOCAB),
            top_p=st.floats(0.125, 1, width=32),
            min_p=st.floats(0, 1, width=32),
            seed=st.integers(0, 2**63 - 1),
            stop=st.text(min_size=1, max_size=3),
            bad_words=st.text(min_size=1, max_size=3),
            stop_token_ids=ids,
            min_tokens=st.integers(0, 2),
            **logits,
        ),
        **_fields(gateway_pb2.ChatMessage, role=st.sampled_from(["system", "user", "assistant", "tool"])),
        **_fields(gateway_pb2.Tool, name=st.sampled_from("abc"), parameters=st.sampled_from(["", "{}"])),
        **_fields(gateway_pb2.ToolCall, name=st.sampled_from("abc"), arguments=st.sampled_from(["", "{}"])),
        **_fields(gateway_pb2.TokenPrompt, ids=ids),
        **_fields(verifier_pb2.OpenRequest, prompt_ids=ids, committed_ids=ids, model_id=st.just("")),
        **_fields(
            session_pb2.SamplingParams,
            temperature=st.floats(0, 2, width=32),
            top_k=st.integers(0, VOCAB),
            top_p=st.floats(0.125, 1, width=32),
            min_p=st.floats(0, 1, width=32),
            max_tokens=few,
            stop_token_ids=ids,
            **logits,
        ),
        **_fields(session_pb2.IdSequence, ids=ids),
        **_fields(
            session_pb2.SessionKey,
            session_id=st.text(st.characters(codec="ascii", categories=["L", "Nd"]), min_size=1, max_size=64),
            epoch=st.integers(1, 9),
        ),
        "paceline.v1.Hello": _HELLOS,
        "paceline.v1.FeatureRequest": _FEATURES,
        "paceline.v1.Join": st.builds(
            verifier_pb2.Join,
            key=st.just(_victim()),
            known_length=base,
            features_from=st.one_of(st.integers(0, 20), st.just(NO_FEATURES)),
        ),
        "paceline.v1.TokenTree": _trees(ids, base),
        **_fields(
            verifier_pb2.DraftRequest,
            leaves=st.just(VICTIM.decode()),
            features_taken=st.one_of(st.just(0), st.integers(0, MIN_WINDOW_BYTES)),
        ),
        **_fields(
            drafter_pb2.AttachRequest,
            verifier_address=st.sampled_from(
                [pods.verifier, pods.grpc, pods.drafter, "127.0.0.1:1", "[::1]:1"]
            ),
            known_ids=ids,
        ),
        **_fields(drafter_pb2.DetachRequest, session_id=st.just(VICTIM.decode())),
    }


def _fields(kind: Any, **strategies: st.SearchStrategy[Any]) -> Plausible:
    return {f"{kind.DESCRIPTOR.full_name}.{name}": strategy for name, strategy in strategies.items()}


def _victim() -> session_pb2.SessionKey:
    return session_pb2.SessionKey(session_id=VICTIM.decode(), epoch=VICTIM_EPOCH)


# Mostly of honest drafters, so that trees get as far as a step; else any float there is.
_CONFIDENCES = st.sampled_from(
    [st.floats(-9, 0, width=32), st.floats(max_value=0, width=32), st.floats(width=32)]
)


@st.composite
def _trees(draw: st.DrawFn, ids: st.SearchStrategy[int], base: st.SearchStrategy[int]) -> tree_pb2.TokenTree:
    """Trees of the victim's, most of them sound, with tokens that hardly ever help."""
    tokens = draw(st.lists(ids, max_size=12, unique=True))
    parents = [draw(st.integers(-1, at - 1)) for at in range(len(tokens))]
    return tree_pb2.TokenTree(
        key=_victim(),
        base_length=draw(base),
        token=tokens,
        parent=parents,
        log_prob=draw(st.lists(draw(_CONFIDENCES), min_size=len(tokens), max_size=len(tokens))),
        source=draw(st.one_of(st.just([]), st.lists(st.integers(0, 2), max_size=len(tokens)))),
    )
