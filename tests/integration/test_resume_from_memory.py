"""Without Redis a gateway keeps its sessions in memory: they are resumed and ended there, and not durable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from paceline.client import Chunk, Finished, GatewayClient, GatewayError, Generation, Started
from paceline.session import FinishReason
from paceline.v1 import gateway_pb2, gateway_pb2_grpc
from tests.pods import Gateway, Pods

ASKED = Generation(text="the quick brown fox", max_tokens=3000, temperature=0.8, seed=11)


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Pods]:
    with Pods(tmp_path_factory.mktemp("memory"), tiny_model, "") as made:
        yield made.start()


class Reader:
    """One session over gRPC, left and resumed at will."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.session_id = ""
        self.position = 0
        self.text = ""
        self.ids: list[int] = []
        self.durable: set[bool] = set()
        self.reason: int | None = None

    async def read(self, chunks: int | None = None) -> None:
        """Begin or resume; leave after so many chunks."""
        async with grpc.aio.insecure_channel(self._gateway.grpc) as channel:
            stub = gateway_pb2_grpc.GatewayServiceStub(channel)
            if self.session_id:
                had = {"position": self.position, "characters": len(self.text)}
                call = stub.Resume(gateway_pb2.ResumeRequest(session_id=self.session_id, **had))
            else:
                call = stub.Generate(ASKED.to_proto())
            async for response in call:
                if response.HasField("started"):
                    self.session_id = response.started.session_id
                    self.position = self.position or response.started.prompt_tokens
                elif response.HasField("finished"):
                    self.reason = response.finished.reason
                else:
                    assert response.chunk.position == self.position
                    self.position += len(response.chunk.token_ids)
                    self.ids += response.chunk.token_ids
                    self.text += response.chunk.text
                    self.durable.add(response.chunk.durable)
                    if chunks is not None and (chunks := chunks - 1) == 0:
                        call.cancel()
                        return


async def test_a_session_is_resumed_where_it_broke_and_told_again_when_it_has_ended(pods: Pods) -> None:
    gateway = pods.gateways["gateway"]
    whole, broken = Reader(gateway), Reader(gateway)
    await whole.read()
    await broken.read(3)
    await broken.read(4)
    assert broken.reason is None
    await broken.read()
    assert (broken.ids, broken.text, broken.reason) == (whole.ids, whole.text, whole.reason)
    assert broken.durable == {False}
    again = Reader(gateway)
    again.session_id, again.position = whole.session_id, whole.position - len(whole.ids)
    await again.read()
    assert (again.ids, again.text, again.reason) == (whole.ids, whole.text, whole.reason)
    assert again.durable == {False}


async def test_who_resumes_takes_over(pods: Pods) -> None:
    gateway = pods.gateways["gateway"]
    async with GatewayClient(gateway.grpc) as client:
        stream = client.generate(ASKED)
        started = await anext(stream)
        assert isinstance(started, Started)
        assert isinstance(await anext(stream), Chunk)
        later = Reader(gateway)
        later.session_id = started.session_id
        await later.read(1)
        with pytest.raises(GatewayError) as caught:
            async for _ in stream:
                pass
    assert caught.value.code is grpc.StatusCode.ABORTED


async def test_a_cancelled_session_ends_its_stream(pods: Pods) -> None:
    gateway = pods.gateways["gateway"]
    async with GatewayClient(gateway.grpc) as client, httpx.AsyncClient() as http:
        stream = client.generate(ASKED)
        started = await anext(stream)
        assert isinstance(started, Started)
        await anext(stream)
        answer = await http.delete(f"{gateway.http}/v1/sessions/{started.session_id}")
        assert (answer.status_code, answer.json()["finish_reason"]) == (200, "cancelled")
        *_, last = [event async for event in stream]
        assert isinstance(last, Finished)
        assert last.reason is FinishReason.CANCELLED
        answer = await http.get(f"{gateway.http}/v1/sessions/nobody/events")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")


def test_the_log_says_that_sessions_are_not_durable(pods: Pods) -> None:
    assert "sessions are not durable" in pods.pods["gateway"].log.read_text()
