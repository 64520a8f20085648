"""A request to open a session: what it must keep to, and how events are streamed."""

from __future__ import annotations

import grpc
import pytest

from paceline.net.rpc import RefusedError
from paceline.net.wire import WireError
from paceline.session import FinishReason, Receipt
from paceline.v1 import session_pb2, verifier_pb2
from verifier_svc.events import Alive, Aside, Broken, Event, Faulty, Finished, Lost, Tokens, Unrecorded
from verifier_svc.identity import ServedModel
from verifier_svc.open_rpc import response_for, session_from_request

SERVED = ServedModel("v:1", "m", "f", vocab_size=100, max_context=20, block_size=4, device="cpu")


def _request(**fields: object) -> verifier_pb2.OpenRequest:
    given: dict[str, object] = {
        "key": session_pb2.SessionKey(session_id="s", epoch=1),
        "model_id": "m",
        "prompt_ids": [1, 2, 3],
        "committed_ids": [4],
        "sampling": session_pb2.SamplingParams(max_tokens=5, top_p=1.0),
    }
    return verifier_pb2.OpenRequest(**{**given, **fields})  # type: ignore[arg-type]


def test_a_session_begins_behind_what_is_committed() -> None:
    session = session_from_request(_request(), SERVED)
    assert (session.prompt_length, session.token_ids) == (3, [1, 2, 3, 4])
    assert (session.opened_length, session.length_limit) == (4, 8)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt_ids": []}, "prompt_ids"),
        ({"prompt_ids": [100]}, "prompt_ids"),
        ({"prompt_ids": [1] * 20}, "prompt_ids"),
        ({"committed_ids": [100]}, "committed_ids"),
        ({"committed_ids": [1] * 5}, "committed_ids"),
        ({"sampling": session_pb2.SamplingParams(max_tokens=18, top_p=1.0)}, "sampling.max_tokens"),
        ({"reply": "x" * (1 << 20)}, "reply"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(fields: dict[str, object], named: str) -> None:
    with pytest.raises(WireError) as raised:
        session_from_request(_request(**fields), SERVED)
    assert raised.value.field == named


def test_another_model_is_refused() -> None:
    with pytest.raises(RefusedError, match="serves 'm', not 'n'"):
        session_from_request(_request(model_id="n"), SERVED)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (Tokens(3, (5, 6), 1, True, 4), "tokens"),
        (Finished(FinishReason.STOP, Receipt()), "finished"),
        (Alive(), "alive"),
        (Aside(1.2), "drafter_aside"),
    ],
)
def test_events_are_streamed_as_their_kind(event: Event, kind: str) -> None:
    assert response_for(event).WhichOneof("event") == kind


def test_tokens_and_pauses_keep_their_numbers() -> None:
    tokens = response_for(Tokens(3, (5, 6), 1, True, 4)).tokens
    assert (tokens.position, list(tokens.token_ids)) == (3, [5, 6])
    assert (tokens.accepted, tokens.durable, tokens.drafted) == (1, True, 4)
    # Rounded up: whoever comes back then is heard.
    assert response_for(Aside(1.2)).drafter_aside.seconds == 2


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (Lost("no"), grpc.StatusCode.ABORTED),
        (Unrecorded("no"), grpc.StatusCode.UNAVAILABLE),
        (Faulty("no"), grpc.StatusCode.FAILED_PRECONDITION),
        (Faulty("no", asked=True), grpc.StatusCode.OUT_OF_RANGE),
        (Broken(), grpc.StatusCode.INTERNAL),
    ],
)
def test_events_that_end_a_session_without_a_result_are_statuses(event: Event, code: grpc.StatusCode) -> None:
    with pytest.raises(RefusedError) as refused:
        response_for(event)
    assert refused.value.code is code
