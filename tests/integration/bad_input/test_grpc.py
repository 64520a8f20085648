"""Bad requests to a gateway's Generate and a verifier's Open: each names the field that is bad."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from paceline.net.rpc import channel
from paceline.v1 import gateway_pb2, gateway_pb2_grpc, session_pb2, verifier_pb2, verifier_pb2_grpc
from tests.bad_input import TOO_LONG, opening
from tests.pods import Pods
from tests.tiny import CONTEXT, VOCAB

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def violations(error: grpc.aio.AioRpcError) -> list[str]:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            bad = error_details_pb2.BadRequest()
            assert status_pb2.Status.FromString(value).details[0].Unpack(bad)
            return [each.field for each in bad.field_violations]
    return []


def regex(text: str) -> session_pb2.Constraint:
    return session_pb2.Constraint(kind=session_pb2.CONSTRAINT_KIND_REGEX, text=text)


def constrained(text: str, **fields: Any) -> session_pb2.SamplingParams:
    given: dict[str, Any] = {"top_p": 1, "max_tokens": 4, "stop_token_ids": [2], **fields}
    return session_pb2.SamplingParams(**given, constraint=regex(text))


def request(**fields: Any) -> gateway_pb2.GenerateRequest:
    if not {"text", "chat", "tokens"} & fields.keys():
        fields["text"] = "hello"
    return gateway_pb2.GenerateRequest(**{"max_tokens": 4, **fields})


@pytest.mark.parametrize(
    ("asked", "code", "field"),
    [
        (request(model="gpt-9"), grpc.StatusCode.NOT_FOUND, "model"),
        (gateway_pb2.GenerateRequest(max_tokens=4), INVALID, "prompt"),
        (request(text=""), INVALID, "text"),
        (request(tokens=gateway_pb2.TokenPrompt()), INVALID, "tokens"),
        (request(tokens=gateway_pb2.TokenPrompt(ids=[VOCAB])), INVALID, "tokens"),
        (request(tokens=gateway_pb2.TokenPrompt(ids=TOO_LONG)), INVALID, "tokens"),
        (request(chat=gateway_pb2.ChatPrompt()), INVALID, "chat.messages"),
        (
            request(chat=gateway_pb2.ChatPrompt(messages=[gateway_pb2.ChatMessage(role="wizard")])),
            INVALID,
            "chat.messages[0].role",
        ),
        (request(max_tokens=0), INVALID, "max_tokens"),
        (request(max_tokens=CONTEXT), INVALID, "max_tokens"),
        (request(temperature=-1), INVALID, "temperature"),
        (request(temperature=float("nan")), INVALID, "temperature"),
        (request(top_p=-1), INVALID, "top_p"),
        (request(top_k=VOCAB + 1), INVALID, "top_k"),
        (request(min_p=1.5), INVALID, "min_p"),
        (request(seed=2**63), INVALID, "seed"),
        (request(stop=["a"] * 5), INVALID, "stop"),
        (request(stop=[""]), INVALID, "stop"),
        (request(stop_token_ids=[VOCAB]), INVALID, "stop_token_ids"),
        (request(stop_token_ids=range(33)), INVALID, "stop_token_ids"),
        (request(max_tokens=4, min_tokens=5), INVALID, "min_tokens"),
        (request(presence_penalty=3), INVALID, "presence_penalty"),
        (request(repetition_penalty=0), INVALID, "repetition_penalty"),
        (request(typical_p=0), INVALID, "typical_p"),
        (request(logit_bias={VOCAB: 1}), INVALID, "logit_bias"),
        (request(logit_bias={1: 101}), INVALID, "logit_bias"),
        (request(allowed_token_ids=[VOCAB]), INVALID, "allowed_token_ids"),
        (request(bad_words=[""]), INVALID, "bad_words"),
        (request(constraint=session_pb2.Constraint(text="a")), INVALID, "constraint.kind"),
        (request(constraint=regex("(a")), INVALID, "constraint"),
        (request(constraint=regex("a" * 9000)), INVALID, "constraint"),
        (request(cache_salt="x" * 257), INVALID, "cache_salt"),
        (
            request(speculation_limits=session_pb2.SpeculationLimits(method="A method")),
            INVALID,
            "speculation_limits.method",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_generate(
    fleet: Pods, asked: gateway_pb2.GenerateRequest, code: grpc.StatusCode, field: str
) -> None:
    async with channel(fleet.grpc) as made:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway_pb2_grpc.GatewayServiceStub(made).Generate(asked, timeout=10).read()
    assert (caught.value.code(), violations(caught.value)) == (code, [field])


@pytest.mark.parametrize(
    ("asked", "code", "fields"),
    [
        (opening(key=session_pb2.SessionKey(epoch=1)), INVALID, ["key.session_id"]),
        (opening(key=session_pb2.SessionKey(session_id="a")), INVALID, ["key.epoch"]),
        (opening(prompt_ids=[]), INVALID, ["prompt_ids"]),
        (opening(prompt_ids=[VOCAB]), INVALID, ["prompt_ids"]),
        (opening(prompt_ids=TOO_LONG), INVALID, ["prompt_ids"]),
        (opening(committed_ids=[VOCAB]), INVALID, ["committed_ids"]),
        (opening(committed_ids=[1, 2, 3, 4]), INVALID, ["committed_ids"]),
        (opening(sampling=session_pb2.SamplingParams(max_tokens=4)), INVALID, ["sampling.top_p"]),
        (opening(sampling=session_pb2.SamplingParams(top_p=1)), INVALID, ["sampling.max_tokens"]),
        (
            opening(sampling=session_pb2.SamplingParams(top_p=1, max_tokens=CONTEXT)),
            INVALID,
            ["sampling.max_tokens"],
        ),
        (
            opening(sampling=session_pb2.SamplingParams(top_p=1, max_tokens=4, temperature=-1)),
            INVALID,
            ["sampling.temperature"],
        ),
        (opening(sampling=constrained("(a")), INVALID, ["sampling.constraint"]),
        (opening(sampling=constrained("a", stop_token_ids=[])), INVALID, ["sampling.stop_token_ids"]),
        (opening(sampling=constrained("a"), committed_ids=[5, 6]), INVALID, ["committed_ids"]),
        (opening(cache_salt="x" * 257), INVALID, ["cache_salt"]),
        (
            opening(speculation=session_pb2.SpeculationLimits(method="A method")),
            INVALID,
            ["speculation.method"],
        ),
        (opening(model_id="other"), grpc.StatusCode.FAILED_PRECONDITION, []),
    ],
)
async def test_a_bad_open(
    fleet: Pods, asked: verifier_pb2.OpenRequest, code: grpc.StatusCode, fields: list[str]
) -> None:
    async with channel(fleet.verifier) as made:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await verifier_pb2_grpc.VerifierServiceStub(made).Open(asked, timeout=10).read()
    assert (caught.value.code(), violations(caught.value)) == (code, fields)
    assert fleet.verifier_status().sessions == 0
