"""What a gateway makes of its verifiers' statuses, told by a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.errors import RequestError
from gateway.fleet import Fleet
from gateway.request import served_model
from gateway.router import choose_verifier
from paceline.net.handshake import Served
from paceline.net.rpc import start_server
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.waiting import wait_until


class Verifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Says what it is told to say of itself."""

    def __init__(self) -> None:
        self.says: dict[str, Any] = {"model_id": "tiny", "vocab_fingerprint": "ours"}

    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: object
    ) -> verifier_pb2.VerifierStatusResponse:
        return verifier_pb2.VerifierStatusResponse(max_sessions=1, vocab_size=9, **self.says)


@pytest.fixture
def verifier() -> Verifier:
    return Verifier()


@pytest.fixture
async def fleet(verifier: Verifier) -> AsyncIterator[Fleet]:
    server = await start_server(
        lambda server: verifier_pb2_grpc.add_VerifierServiceServicer_to_server(verifier, server),
        services=[],
        host="127.0.0.1",
        port=0,
    )
    fleet = Fleet([server.address], [], 0.01, served=Served("tiny", "ours"))
    fleet.start()
    yield fleet
    await fleet.close()
    await server.stop(0)


async def test_a_verifier_of_the_same_model_is_routed_to(fleet: Fleet) -> None:
    assert fleet.not_ready() == "no verifier is up"
    await wait_until(lambda: fleet.not_ready() == "", "the verifier is up")
    assert choose_verifier(fleet.verifier_views(), "tiny") is not None
    assert served_model(fleet.verifier_views(), "tiny", "").vocab_size == 9


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (
            {"model_id": "large", "vocab_fingerprint": "ours"},
            "a verifier serves 'large' and this gateway 'tiny': give both the same --model-name",
        ),
        (
            {"model_id": "tiny", "vocab_fingerprint": "theirs"},
            "a verifier's vocabulary of 'tiny' (theirs) is not this gateway's (ours): "
            "give both the same --model",
        ),
        (
            {"model_id": "tiny"},
            "a verifier's vocabulary of 'tiny' (unknown) is not this gateway's (ours): "
            "give both the same --model",
        ),
    ],
)
async def test_a_verifier_of_another_model_gets_nothing_and_is_told_of(
    fleet: Fleet, verifier: Verifier, capsys: pytest.CaptureFixture[str], says: dict[str, str], why: str
) -> None:
    ours, verifier.says = verifier.says, says
    await wait_until(lambda: bool(fleet.verifier_views()), "the verifier has answered")
    assert fleet.not_ready() == why
    assert choose_verifier(fleet.verifier_views(), "tiny") is None
    with pytest.raises(RequestError, match="no verifier of 'tiny' is up"):
        served_model(fleet.verifier_views(), "tiny", "")
    (pod,) = fleet.to_proto(0).verifiers
    assert pod.misfit == why
    # It is started anew with what fits.
    verifier.says = ours
    await wait_until(lambda: fleet.not_ready() == "", "the verifier fits")
    assert choose_verifier(fleet.verifier_views(), "tiny") is not None
    said = capsys.readouterr()
    assert (said.out + said.err).count("verifier gets no sessions") == 1
