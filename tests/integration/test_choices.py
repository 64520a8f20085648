"""Several choices and several prompts in one request of a real fleet, through the official client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.pods import MODEL, Pods
from tests.tiny import CONTEXT
from tests.waiting import wait_until

ASKED: dict[str, Any] = {"model": MODEL, "prompt": "the quick", "max_tokens": 24, "temperature": 1, "seed": 7}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello world"}],
    "max_tokens": 24,
    "seed": 7,
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    """A fleet with room for fewer sessions than some requests ask for."""
    folder = tmp_path_factory.mktemp("fleet")
    few, hasty = ("--max-sessions", "3"), ("--queue-seconds", "0.2")
    with Pods(folder, tiny_model, redis_url, verifier_flags=few, gateway_flags=hasty) as pods:
        yield pods.start()


@pytest.fixture
async def client(fleet: Pods) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{fleet.http}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_choices_are_what_their_seeds_give_alone(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(**ASKED, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) == 3
    receipts = answer.model_dump()["paceline"]["choices"]
    assert receipts[0]["seed"] == 7
    for choice, receipt in zip(answer.choices, receipts, strict=True):
        alone = await client.completions.create(**{**ASKED, "seed": receipt["seed"]})
        assert (choice.text, choice.finish_reason) == (alone.choices[0].text, alone.choices[0].finish_reason)
    again = await client.completions.create(**ASKED, n=3, best_of=3)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


async def test_a_streams_choices_are_those_of_the_whole(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**CHAT, n=3)
    texts, reasons, roles = [""] * 3, [""] * 3, [0] * 3
    usage = None
    stream = await client.chat.completions.create(
        **CHAT, n=3, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
            roles[choice.index] += choice.delta.role is not None
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == [1, 1, 1]
    assert whole.usage is not None
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


async def test_each_prompt_of_a_batch_gets_what_it_gets_alone(client: openai.AsyncOpenAI) -> None:
    prompts: list[Any] = ["hello", "lazy dog", "a b a b", "the quick brown fox", "jumps"]
    answer = await client.completions.create(**{**ASKED, "prompt": prompts}, n=2)
    assert [choice.index for choice in answer.choices] == list(range(10))
    tokens = 0
    for place, prompt in enumerate(prompts):
        alone = await client.completions.create(**{**ASKED, "prompt": prompt}, n=2)
        got = answer.choices[2 * place : 2 * place + 2]
        assert [choice.text for choice in got] == [choice.text for choice in alone.choices]
        assert alone.usage is not None
        tokens += alone.usage.prompt_tokens
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == tokens


async def test_the_prompt_at_fault_is_named(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(**{**ASKED, "prompt": [[5], [5, 512]]})
    assert caught.value.param == "prompt[1]"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(**{**ASKED, "prompt": ["a"] * 65}, n=2)
    assert caught.value.param == "n"


async def test_best_of_says_what_it_takes(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="at least n") as caught:
        await client.completions.create(**ASKED, n=2, best_of=1)
    assert caught.value.param == "best_of"


def test_a_stream_of_several_choices_is_resumed_session_by_session(fleet: Pods) -> None:
    asked = {**ASKED, "n": 2, "stream": True}
    with httpx.Client(base_url=fleet.http) as client:
        answer = client.post("/v1/completions", json=asked, headers={"x-event-ids": "1"})
        assert "id: " not in answer.text
        whole = client.post("/v1/completions", json={**ASKED, "n": 2}).json()
        refused = client.post("/v1/completions", json=asked, headers={"last-event-id": "s:5:1"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")
        session_id = whole["paceline"]["choices"][1]["session_id"]
        rest = client.get(f"/v1/sessions/{session_id}/events").text
    assert whole["choices"][1]["text"]
    assert '"index":1' in rest
    assert '"index":0' not in rest


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_ends_all_choices(fleet: Pods, stream: bool) -> None:
    asked = {**ASKED, "max_tokens": CONTEXT - 100, "n": 3, "stream": stream, "temperature": 0}
    async with httpx.AsyncClient() as client:
        going = asyncio.create_task(client.post(f"{fleet.http}/v1/completions", json=asked, timeout=60))
        await wait_until(lambda: fleet.verifier_status().sessions == 3, "all choices run")
        going.cancel()
        await asyncio.wait({going})
    await wait_until(lambda: fleet.verifier_status().sessions == 0, "the verifier has dropped them", 5)
    await wait_until(lambda: fleet.verifier_status().kv_used == 0, "their KV is free", 5)
