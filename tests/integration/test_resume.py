"""A client that comes back, to any gateway, gets the rest of its session: each token once, the same text."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from paceline.client import Chunk, Event, Finished, GatewayClient, GatewayError, Generation, Started
from paceline.session import FinishReason
from paceline.v1 import gateway_pb2, gateway_pb2_grpc, verifier_pb2
from tests.pods import MODEL, Gateway, Pods
from tests.waiting import wait_until

PROMPT = "the quick brown fox"
LENGTH = 300
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 11}
ASKED = {
    "greedy": Generation(text=PROMPT, max_tokens=LENGTH, temperature=0),
    "sampled": Generation(text=PROMPT, max_tokens=LENGTH, **SAMPLED),
    "plain": Generation(text=PROMPT, max_tokens=LENGTH, **SAMPLED, speculation=False),
}


@dataclass
class Two:
    """One fleet behind two gateways."""

    pods: Pods
    first: Gateway
    second: Gateway


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Two]:
    with Pods(tmp_path_factory.mktemp("two"), tiny_model, redis_url) as pods:
        pods.start()
        yield Two(pods, Gateway(pods.http, pods.grpc), pods.start_gateway("second gateway"))


@dataclass
class Sse:
    """A stream of server-sent events, as much of it as was read."""

    last_id: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    @property
    def text(self) -> str:
        return "".join(_text(choice) for body in self.bodies for choice in body.get("choices", ()))

    @property
    def finish_reason(self) -> str:
        (reason,) = [
            choice["finish_reason"]
            for body in self.bodies
            for choice in body.get("choices", ())
            if choice["finish_reason"]
        ]
        return str(reason)

    async def read(self, response: httpx.Response, *, texts: int | None = None) -> Sse:
        """Read to the end, or until so many events with text have come."""
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                self.last_id = value
            elif name == "data":
                self.done = value == "[DONE]"
                if not self.done:
                    self.bodies.append(json.loads(value))
                if texts is not None and sum(bool(_text_of(body)) for body in self.bodies) >= texts:
                    break
        return self


def _text(choice: dict[str, Any]) -> str:
    return str(choice["delta"].get("content", "") if "delta" in choice else choice["text"])


def _text_of(body: dict[str, Any]) -> str:
    return "".join(_text(choice) for choice in body.get("choices", ()))


def chat(**more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": LENGTH,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


async def post(gateway: Gateway, body: dict[str, Any], *, texts: int | None = None, last_id: str = "") -> Sse:
    headers = {"Last-Event-ID": last_id} if last_id else {"X-Event-IDs": "1"}
    url = f"{gateway.http}/v1/chat/completions"
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", url, json=body, headers=headers) as response,
    ):
        return await Sse().read(response, texts=texts)


def _session(last_id: str) -> str:
    return last_id.partition(":")[0]


async def get(gateway: Gateway, session_id: str, *, last_id: str = "", texts: int | None = None) -> Sse:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    url = f"{gateway.http}/v1/sessions/{session_id}/events"
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        return await Sse().read(response, texts=texts)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, SAMPLED], ids=["greedy", "sampled"])
async def test_the_rest_over_sse_at_another_gateway(sampling: dict[str, Any], two: Two) -> None:
    whole = await post(two.first, chat(**sampling))
    for texts in (1, 9):
        head = await post(two.first, chat(**sampling), texts=texts)
        middle = await get(two.second, _session(head.last_id), last_id=head.last_id, texts=3)
        rest = await get(two.first, _session(head.last_id), last_id=middle.last_id)
        assert head.text + middle.text + rest.text == whole.text
        assert rest.done
        assert rest.finish_reason == whole.finish_reason
        assert rest.bodies[-1]["usage"] == whole.bodies[-1]["usage"] | {
            "completion_tokens_details": rest.bodies[-1]["usage"]["completion_tokens_details"]
        }
        bodies = [*head.bodies, *middle.bodies, *rest.bodies]
        assert len({(body["id"], body["object"], body["created"]) for body in bodies}) == 1
        assert sum("role" in choice["delta"] for body in bodies for choice in body["choices"]) == 1


async def test_a_client_may_repeat_its_request_with_the_last_id(two: Two) -> None:
    """As EventSource libraries do by themselves."""
    whole = await post(two.first, chat(**SAMPLED))
    head = await post(two.first, chat(**SAMPLED), texts=4)
    rest = await post(two.second, chat(**SAMPLED), last_id=head.last_id)
    assert head.text + rest.text == whole.text


async def test_a_session_that_has_ended_is_told_again(two: Two) -> None:
    whole = await post(two.first, chat(**SAMPLED))
    head = await post(two.first, chat(**SAMPLED), texts=4)
    session_id = _session(head.last_id)
    await get(two.first, session_id)
    again = await get(two.second, session_id)
    assert (again.text, again.finish_reason) == (whole.text, whole.finish_reason)
    rest = await get(two.second, session_id, last_id=head.last_id)
    assert head.text + rest.text == whole.text
    nothing = await get(two.second, session_id, last_id=again.last_id)
    assert (nothing.text, nothing.finish_reason, nothing.done) == ("", whole.finish_reason, True)


class Grpc:
    """A gRPC stream as the wire has it, left and resumed at will."""

    def __init__(self, asked: Generation) -> None:
        self._asked = asked
        self.session_id = ""
        self.position = 0
        self.text = ""
        self.ids: list[int] = []
        self.finished: verifier_pb2.Finished | None = None

    async def read(self, gateway: Gateway, chunks: int | None = None) -> None:
        """Begin or resume; leave after so many chunks."""
        async with grpc.aio.insecure_channel(gateway.grpc) as channel:
            stub = gateway_pb2_grpc.GatewayServiceStub(channel)
            if self.session_id:
                call = stub.Resume(
                    gateway_pb2.ResumeRequest(
                        session_id=self.session_id, position=self.position, characters=len(self.text)
                    )
                )
            else:
                call = stub.Generate(self._asked.to_proto())
            async for response in call:
                self._take(response)
                if response.HasField("chunk") and chunks is not None:
                    chunks -= 1
                    if not chunks:
                        call.cancel()
                        return

    def _take(self, response: gateway_pb2.GenerateResponse) -> None:
        match response.WhichOneof("event"):
            case "started":
                self.session_id = response.started.session_id
                self.position = self.position or response.started.prompt_tokens
            case "chunk":
                assert response.chunk.position == self.position
                self.position += len(response.chunk.token_ids)
                self.ids += response.chunk.token_ids
                self.text += response.chunk.text
            case "finished":
                self.finished = response.finished


@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
async def test_the_rest_over_grpc_at_another_gateway(asked: Generation, two: Two) -> None:
    whole = Grpc(asked)
    await whole.read(two.first)
    moved = Grpc(asked)
    await moved.read(two.first, 1)
    for index in range(4):
        await moved.read((two.second, two.first)[index % 2], 3)
    await moved.read(two.second)
    assert moved.ids == whole.ids
    assert moved.text == whole.text
    assert moved.finished is not None


async def test_a_stop_string_ends_a_resumed_session_at_the_same_token(two: Two) -> None:
    whole = Grpc(ASKED["plain"])
    await whole.read(two.first)
    asked = Generation(text=PROMPT, max_tokens=LENGTH, **SAMPLED, stop=[whole.text[150:153]])
    stopped, moved = Grpc(asked), Grpc(asked)
    await stopped.read(two.first)
    await moved.read(two.first, 2)
    await moved.read(two.second)
    assert (moved.ids, moved.text) == (stopped.ids, stopped.text)
    assert 0 < len(moved.ids) < len(whole.ids)
    again = Grpc(asked)
    again.session_id, again.position = moved.session_id, moved.position - len(moved.ids)
    await again.read(two.second)
    assert (again.ids, again.text) == (moved.ids, moved.text)


async def test_a_client_that_leaves_stops_its_session(two: Two) -> None:
    left = Grpc(Generation(text=PROMPT, max_tokens=8000, **SAMPLED))
    await left.read(two.first, 2)
    await wait_until(lambda: not two.pods.verifier_status().sessions, "the verifier lets it go")
    committed = two.pods.verifier_status().committed_tokens
    await left.read(two.second, 2)
    await wait_until(lambda: not two.pods.verifier_status().sessions, "the verifier lets it go")
    assert two.pods.verifier_status().committed_tokens > committed


async def _events(stream: AsyncGenerator[Event, None], chunks: int) -> list[Event]:
    events: list[Event] = []
    while sum(isinstance(event, Chunk) for event in events) < chunks:
        events.append(await anext(stream))
    return events


async def test_who_resumes_takes_over_from_a_stream_that_still_runs(two: Two) -> None:
    asked = Generation(text=PROMPT, max_tokens=2000, **SAMPLED)
    async with GatewayClient(two.first.grpc) as client:
        stream = client.generate(asked)
        (started, *_) = await _events(stream, 3)
        assert isinstance(started, Started)
        later = Grpc(asked)
        later.session_id = started.session_id
        await later.read(two.second, 1)
        with pytest.raises(GatewayError) as caught:
            async for _ in stream:
                pass
    assert caught.value.code is grpc.StatusCode.ABORTED


@pytest.mark.parametrize("how", ["http", "grpc"])
async def test_a_cancelled_session_ends_its_stream(how: str, two: Two) -> None:
    async with GatewayClient(two.first.grpc) as client, GatewayClient(two.second.grpc) as other:
        stream = client.generate(Generation(text=PROMPT, max_tokens=8000, **SAMPLED))
        events = await _events(stream, 3)
        assert isinstance(events[0], Started)
        session_id = events[0].session_id

        async def cancel() -> str:
            if how == "grpc":
                return str(await other.cancel(session_id))
            async with httpx.AsyncClient() as http:
                answer = await http.delete(f"{two.second.http}/v1/sessions/{session_id}")
                return str(answer.json()["finish_reason"])

        assert await cancel() == "cancelled"
        events += [event async for event in stream]
        assert isinstance(events[-1], Finished)
        assert events[-1].reason is FinishReason.CANCELLED
        assert await cancel() == "cancelled"
        again = await get(two.first, session_id)
        assert again.finish_reason == "cancelled"
        ended = await post(two.first, chat(**SAMPLED))
        async with httpx.AsyncClient() as http:
            answer = await http.delete(f"{two.second.http}/v1/sessions/{_session(ended.last_id)}")
        assert answer.json()["finish_reason"] == ended.finish_reason


@pytest.mark.parametrize(
    ("session_id", "last_id", "status", "code"),
    [
        ("nobody", "", 404, "session_not_found"),
        ("nobody", "nobody:3:0", 404, "session_not_found"),
        ("no{bo}dy", "", 404, "session_not_found"),
        ("a" * 65, "", 404, "session_not_found"),
        ("nobody", "somebody:3:0", 400, "invalid_value"),
        ("nobody", "nobody:3", 400, "invalid_value"),
        ("nobody", "nobody:-3:0", 400, "invalid_value"),
        ("nobody", "nobody:3:" + "9" * 5000, 400, "invalid_value"),
    ],
)
async def test_what_cannot_be_resumed_is_refused(
    session_id: str, last_id: str, status: int, code: str, two: Two
) -> None:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{two.first.http}/v1/sessions/{session_id}/events", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        deleted = await client.delete(f"{two.first.http}/v1/sessions/{session_id}")
        assert (deleted.status_code, deleted.json()["error"]["code"]) == (404, "session_not_found")
