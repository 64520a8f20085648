"""Limits, queues, deadlines and slow clients, over the real wire with two gateways and one Redis."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from paceline.api_keys import api_key_hash, new_api_key
from paceline.client import Chunk, GatewayClient, GatewayError, Generation
from paceline.v1 import gateway_pb2, gateway_pb2_grpc
from tests.pods import MODEL, Gateway, Pods
from tests.waiting import wait_until

STALL_SECONDS = 3.0
SHORT: dict[str, Any] = {"model": MODEL, "prompt": "the quick brown fox", "max_tokens": 8, "temperature": 0}
LONG = Generation(text="the quick brown fox", max_tokens=16_000, temperature=0.8, seed=1)

KEYS = {name: new_api_key() for name in ("status", "single", "queued", "metered", "free")}
LIMITS: dict[str, dict[str, int]] = {
    "single": {"concurrent_sessions": 1, "queued_requests": 0},
    "queued": {"concurrent_sessions": 1, "queued_requests": 5},
    "metered": {"tokens_per_minute": 600},
}


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    folder = tmp_path_factory.mktemp("limited")
    entries = [
        {
            "id": name,
            "sha256": [api_key_hash(key)],
            "scopes": ["status" if name == "status" else "generate"],
            "limits": LIMITS.get(name, {}),
        }
        for name, key in KEYS.items()
    ]
    (folder / "keys.json").write_text(json.dumps({"keys": entries}))
    with Pods(
        folder,
        tiny_model,
        redis_url,
        gateway_flags=(
            *("--api-keys-file", str(folder / "keys.json")),
            *("--client-stall-seconds", str(STALL_SECONDS), "--queue-seconds", "60"),
        ),
        api_key=KEYS["status"],
    ) as made:
        yield made.start()


@pytest.fixture(scope="module")
def other(pods: Pods) -> Gateway:
    """A second gateway of the same fleet."""
    return pods.start_gateway("other")


def post(url: str, name: str, **headers: str) -> httpx.Response:
    headers["authorization"] = f"Bearer {KEYS[name]}"
    return httpx.post(f"{url}/v1/completions", json=SHORT, headers=headers, timeout=60)


class Streaming:
    """A long stream that is read in the background."""

    def __init__(self, address: str, name: str, timeout_s: float = 120.0) -> None:
        self.tokens = 0
        self.task = asyncio.create_task(self._read(address, name, timeout_s))

    async def _read(self, address: str, name: str, timeout_s: float) -> None:
        async with GatewayClient(address, api_key=KEYS[name], resume_s=0) as client:
            async for event in client.generate(LONG, timeout_s=timeout_s):
                if isinstance(event, Chunk):
                    self.tokens += len(event.token_ids)

    async def runs(self) -> None:
        await wait_until(lambda: self.tokens > 0 or self.task.done(), "it runs")
        assert not self.task.done()

    async def stop(self) -> None:
        self.task.cancel()
        await self.ended()

    async def ended(self) -> BaseException | None:
        """What it ended with."""
        await asyncio.wait({self.task}, timeout=10)
        return None if self.task.cancelled() else self.task.exception()


async def sessions(pods: Pods) -> int:
    async with GatewayClient(pods.grpc, api_key=KEYS["status"]) as client:
        return (await client.fleet()).sessions


async def until_idle(pods: Pods) -> None:
    await wait_until(lambda: pods.verifier_status().sessions == 0, "no session runs")


async def test_two_gateways_share_a_keys_limit(pods: Pods, other: Gateway) -> None:
    running = Streaming(pods.grpc, "single")
    await running.runs()
    for url in (pods.http, other.http):
        answer = post(url, "single")
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    async with GatewayClient(other.grpc, api_key=KEYS["single"]) as client:
        with pytest.raises(GatewayError) as caught:
            await anext(client.generate(LONG))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 60
    # Nobody else is touched.
    assert post(other.http, "free").status_code == 200
    await running.stop()
    await wait_until(lambda: post(other.http, "single").status_code == 200, "its place is free", 5)


async def test_a_client_that_has_its_answer_finds_its_place_free(pods: Pods) -> None:
    assert [post(pods.http, "single").status_code for _ in range(10)] == [200] * 10


async def test_requests_wait_for_a_place_in_a_bounded_queue(pods: Pods, other: Gateway) -> None:
    running = Streaming(pods.grpc, "queued")
    await running.runs()
    async with httpx.AsyncClient(timeout=60) as client:

        async def ask(url: str) -> int:
            headers = {"authorization": f"Bearer {KEYS['queued']}"}
            answer = await client.post(f"{url}/v1/completions", json=SHORT, headers=headers)
            return answer.status_code

        asked = [asyncio.create_task(ask(url)) for url in (pods.http, other.http) for _ in range(4)]
        await wait_until(lambda: sum(task.done() for task in asked) == 3, "three are refused")
        await running.stop()
        assert sorted(await asyncio.gather(*asked)) == [200] * 5 + [429] * 3


async def test_the_official_client_waits_as_it_is_told_and_gets_through(pods: Pods) -> None:
    asked = {**SHORT, "prompt": [5] * 580, "max_tokens": 4}
    async with openai.AsyncOpenAI(
        base_url=f"{pods.http}/v1", api_key=KEYS["metered"], max_retries=2
    ) as client:
        first = await client.completions.with_raw_response.create(**asked)
        assert first.headers["x-ratelimit-limit-tokens"] == "600"
        assert int(first.headers["x-ratelimit-remaining-tokens"]) <= 16
        impatient = client.with_options(max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            await impatient.completions.create(**{**asked, "prompt": [5] * 40})
        # Ten tokens come a second.
        seconds = int(caught.value.response.headers["retry-after"])
        assert 1 <= seconds <= 4
        started = time.monotonic()
        again = await client.completions.create(**{**asked, "prompt": [5] * 40})
        assert again.usage is not None
        assert again.usage.prompt_tokens == 40
        assert time.monotonic() - started > 0.5


async def test_a_killed_gateways_places_are_free_again(pods: Pods) -> None:
    doomed = pods.start_gateway("doomed")
    running = Streaming(doomed.grpc, "single")
    await running.runs()
    pods.pods["doomed"].kill()
    assert isinstance(await running.ended(), GatewayError)
    assert post(pods.http, "single").status_code == 429
    await wait_until(lambda: post(pods.http, "single").status_code == 200, "its lease has ended", 30)


async def test_a_grpc_deadline_ends_the_session_at_the_verifier_itself(pods: Pods, other: Gateway) -> None:
    await until_idle(pods)
    # No keepalive: the deadline alone is to end it.
    async with grpc.aio.insecure_channel(other.grpc) as channel:
        call = gateway_pb2_grpc.GatewayServiceStub(channel).Generate(
            LONG.to_proto(), timeout=4.0, metadata=(("authorization", f"Bearer {KEYS['free']}"),)
        )
        while (await call.read()).WhichOneof("event") != "chunk":
            pass
        # So it is not this gateway that ends it.
        pods.pods["other"].pause()
        try:
            assert pods.verifier_status().sessions == 1
            await wait_until(lambda: pods.verifier_status().sessions == 0, "the verifier has ended it", 10)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            pods.pods["other"].resume()


async def test_http_clients_can_set_a_time(pods: Pods) -> None:
    await until_idle(pods)
    asked = {**SHORT, "max_tokens": 16_000, "temperature": 0.8, "seed": 1}
    headers = {"authorization": f"Bearer {KEYS['free']}", "x-request-timeout": "0.5"}
    async with httpx.AsyncClient(base_url=pods.http, headers=headers, timeout=30) as client:
        whole = await client.post("/v1/completions", json=asked)
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "timeout")
        stream = await client.post("/v1/completions", json={**asked, "stream": True})
        assert stream.status_code == 200
        events = stream.text.strip().split("\n\n")
        last = json.loads(events[-1].split("data: ", 1)[1])
        assert last["error"]["code"] == "timeout"
        await wait_until(lambda: pods.verifier_status().sessions == 0, "the session has ended", 5)
        for wrong in ("0", "-1", "soon", "nan"):
            bad = await client.post("/v1/completions", json=SHORT, headers={"x-request-timeout": wrong})
            assert (bad.status_code, bad.json()["error"]["param"]) == (400, "x-request-timeout")
    assert post(pods.http, "free", **{"x-request-timeout": "60"}).status_code == 200


class SleepyGrpc:
    """Takes a stream's first event and then nothing."""

    def __init__(self, address: str) -> None:
        # No more than one stream's window on the way.
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        self.channel = grpc.aio.insecure_channel(address, options=options)

    async def begin(self) -> None:
        request = LONG.to_proto()
        metadata = (("authorization", f"Bearer {KEYS['free']}"),)
        self.call = gateway_pb2_grpc.GatewayServiceStub(self.channel).Generate(request, metadata=metadata)
        assert isinstance(await self.call.read(), gateway_pb2.GenerateResponse)

    async def close(self) -> None:
        await self.channel.close()


class SleepyHttp:
    """Sends a request and takes nothing of the answer."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.address = host, int(port)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)

    async def begin(self) -> None:
        body = json.dumps({**SHORT, "max_tokens": 16_000, "temperature": 0.8, "seed": 1, "stream": True})
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEYS['free']}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.socket.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, self.address)
        await loop.sock_sendall(self.socket, (head + body).encode())

    async def close(self) -> None:
        self.socket.close()


@pytest.fixture
async def sleepers(pods: Pods) -> AsyncIterator[list[SleepyGrpc | SleepyHttp]]:
    made: list[SleepyGrpc | SleepyHttp] = [
        kind for _ in range(4) for kind in (SleepyGrpc(pods.grpc), SleepyHttp(pods.http))
    ]
    yield made
    for each in made:
        await each.close()


def resident_mb(pods: Pods) -> float:
    """Memory of gateway and verifier together."""
    total = 0.0
    for name in ("gateway", pods.verifier):
        status = Path(f"/proc/{pods.pods[name].pid}/status").read_text()
        total += int(status.split("VmRSS:")[1].split()[0]) / 1024
    return total


async def test_clients_that_take_nothing_hold_up_nobody_and_are_let_go(
    pods: Pods, sleepers: list[SleepyGrpc | SleepyHttp]
) -> None:
    await until_idle(pods)
    expected = post(pods.http, "free").json()["choices"][0]["text"]
    before = resident_mb(pods)
    for each in sleepers:
        await each.begin()
    gone = asyncio.create_task(all_gone(pods))
    served = 0
    while not gone.done() or served < 5:
        answer = await asyncio.to_thread(post, pods.http, "free")
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["text"] == expected
        served += 1
    await gone
    assert resident_mb(pods) - before < 64
    await until_idle(pods)


async def all_gone(pods: Pods) -> None:
    """Return when the gateway follows no session any more but perhaps a short one."""
    async with GatewayClient(pods.grpc, api_key=KEYS["status"]) as client:
        end = time.monotonic() + 120
        while (await client.fleet()).sessions > 1:
            assert time.monotonic() < end, "clients that take nothing are kept for ever"
            await asyncio.sleep(0.1)


def test_none_of_this_left_an_error_in_a_log(pods: Pods) -> None:
    for pod in pods.pods.values():
        text = pod.log.read_text()
        assert "Traceback" not in text
        assert "[error" not in text
