"""The OpenAI-compatible face of a real fleet, through the official client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from transformers import AutoTokenizer

from tests.pods import MODEL, Pods
from tests.tiny import CONTEXT
from tests.waiting import wait_until

ASKED: dict[str, Any] = {"model": MODEL, "prompt": "the quick brown fox", "max_tokens": 48, "temperature": 0}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello world"}],
    "max_tokens": 24,
    "temperature": 0,
}
PLAIN = {"speculation": {"enabled": False}}


@pytest.fixture
async def client(fleet: Pods) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{fleet.http}/v1", api_key="none", max_retries=0) as made:
        yield made


async def streamed(client: openai.AsyncOpenAI, **asked: Any) -> tuple[str, list[Any]]:
    chunks = [chunk async for chunk in await client.completions.create(**asked, stream=True)]
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices), chunks


async def test_the_model_is_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "paceline"
    with pytest.raises(openai.NotFoundError, match="'gpt-9' does not exist") as caught:
        await client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_health_and_readiness(fleet: Pods) -> None:
    for path in ("healthz", "readyz"):
        answer = httpx.get(f"{fleet.http}/{path}")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_a_completion_and_its_usage(client: openai.AsyncOpenAI, tiny_model: Path) -> None:
    answer = await client.completions.create(**ASKED)
    prompt = AutoTokenizer.from_pretrained(tiny_model)(ASKED["prompt"])["input_ids"]
    assert answer.model == MODEL
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 48
    assert answer.usage.total_tokens == len(prompt) + 48


async def test_a_prompt_of_ids_is_the_prompt_of_its_text(
    client: openai.AsyncOpenAI, tiny_model: Path
) -> None:
    ids = AutoTokenizer.from_pretrained(tiny_model)(ASKED["prompt"])["input_ids"]
    by_text = await client.completions.create(**ASKED)
    by_ids = await client.completions.create(**{**ASKED, "prompt": ids})
    assert by_ids.choices[0].text == by_text.choices[0].text


async def test_sixteen_tokens_are_a_completions_default(client: openai.AsyncOpenAI) -> None:
    asked = {key: value for key, value in ASKED.items() if key != "max_tokens"}
    answer = await client.completions.create(**asked)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


async def test_a_stream_is_the_whole_in_pieces(client: openai.AsyncOpenAI) -> None:
    # So long that a drafter that guesses every token, in trees of at most 16 levels, leaves many pieces.
    asked = {**ASKED, "max_tokens": 200}
    whole = await client.completions.create(**asked)
    text, chunks = await streamed(client, **asked, stream_options={"include_usage": True})
    assert text == whole.choices[0].text
    assert len(chunks) > 10
    assert len({chunk.id for chunk in chunks}) == 1
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 200
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


async def test_usage_is_streamed_only_when_asked_for(client: openai.AsyncOpenAI) -> None:
    _, chunks = await streamed(client, **ASKED)
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_chat_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**CHAT)
    message = whole.choices[0].message
    assert (message.role, whole.object) == ("assistant", "chat.completion")
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 24
    stream = await client.chat.completions.create(**CHAT, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


async def test_a_chat_is_its_template_as_a_prompt(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(**CHAT)
    text = await client.completions.create(
        **{**ASKED, "prompt": "user: hello world\nassistant:", "max_tokens": 24}
    )
    assert text.choices[0].text == chat.choices[0].message.content


async def test_the_old_and_the_new_name_of_the_token_limit_mean_the_same(client: openai.AsyncOpenAI) -> None:
    old = await client.chat.completions.create(**CHAT)
    renamed = {key: value for key, value in CHAT.items() if key != "max_tokens"}
    new = await client.chat.completions.create(**renamed, max_completion_tokens=24)
    assert new.choices[0].message.content == old.choices[0].message.content


async def test_the_wire_is_server_sent_events(fleet: Pods) -> None:
    """Nothing but data, for parsers of common clients know nothing else."""
    events = await _events_on_the_wire(fleet, {"accept": "application/json"})
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") and "\n" not in event for event in events[:-1])
    last = json.loads(events[-3].removeprefix("data: "))
    assert last["paceline"]["steps"] >= 1
    assert last["paceline"]["acceptance_length"] >= 1


@pytest.mark.parametrize("headers", [{"accept": "text/event-stream"}, {"x-event-ids": "true"}])
async def test_events_have_ids_for_clients_that_ask_for_them(headers: dict[str, str], fleet: Pods) -> None:
    events = await _events_on_the_wire(fleet, headers)
    for event in events[:-2]:
        mark, _, data = event.partition("\n")
        session_id = json.loads(data.removeprefix("data: "))["id"].partition("-")[2]
        assert mark.startswith(f"id: {session_id}:")


@pytest.mark.parametrize(("route", "asked"), [("completions", ASKED), ("chat/completions", CHAT)])
def test_proxies_are_told_to_hold_no_stream_back(fleet: Pods, route: str, asked: dict[str, Any]) -> None:
    answer = httpx.post(f"{fleet.http}/v1/{route}", json={**asked, "stream": True})
    assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-cache")


async def _events_on_the_wire(fleet: Pods, headers: dict[str, str]) -> list[str]:
    asked = {**ASKED, "stream": True}
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{fleet.http}/v1/completions", json=asked, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"]
    return answer.text.split("\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_text_ends_before_a_stop_string(client: openai.AsyncOpenAI, stream: bool) -> None:
    full = (await client.completions.create(**ASKED)).choices[0].text
    stop = full[20:24]
    asked = {**ASKED, "stop": [stop, "\x00never"]}
    if stream:
        text, chunks = await streamed(client, **asked)
        reason = chunks[-1].choices[0].finish_reason
    else:
        answer = await client.completions.create(**asked)
        text, reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert text == full[: full.index(stop)]
    assert reason == "stop"


async def test_a_stop_string_that_never_comes_changes_nothing(client: openai.AsyncOpenAI) -> None:
    full = (await client.completions.create(**ASKED)).choices[0]
    # Its beginning is the text's very end, so that something is held back until then.
    held = (await client.completions.create(**ASKED, stop=full.text[-1] + "\x00")).choices[0]
    assert (held.text, held.finish_reason) == (full.text, "length")


async def test_a_seed_repeats_the_text_and_another_changes_it(client: openai.AsyncOpenAI) -> None:
    async def text(seed: int) -> str:
        answer: Completion = await client.completions.create(**{**ASKED, "temperature": 0.8, "seed": seed})
        return answer.choices[0].text

    assert await text(7) == await text(7)
    assert len({await text(seed) for seed in range(4)}) == 4


async def test_a_seed_of_the_servers_own_choice_replays_where_numbers_are_doubles(
    client: openai.AsyncOpenAI,
) -> None:
    asked = {**ASKED, "max_tokens": 16, "temperature": 1}
    for _ in range(3):
        first = await client.completions.create(**asked)
        # As JavaScript reads it and writes it back.
        seed = int(float(first.model_dump()["paceline"]["seed"]))
        again = await client.completions.create(**asked, seed=seed)
        assert again.model_dump()["paceline"]["seed"] == first.model_dump()["paceline"]["seed"] < 2**53
        assert again.choices[0].text == first.choices[0].text


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_speculation_never_changes_the_text(
    client: openai.AsyncOpenAI, temperature: float, seed: int
) -> None:
    asked = {**ASKED, "max_tokens": 200, "temperature": temperature, "top_p": 0.95, "seed": seed}
    asked["prompt"] = ["hello world", "lazy dog", "a b a b a b a b"][seed - 1]
    quick = await client.completions.create(**asked)
    plain = await client.completions.create(**asked, extra_body=PLAIN)
    assert quick.choices[0].text == plain.choices[0].text
    assert plain.model_dump()["paceline"]["drafted_tokens"] == 0


@pytest.mark.parametrize("temperature", [0, 0.8])
async def test_a_text_ends_no_earlier_than_min_tokens_drafted_or_not(
    client: openai.AsyncOpenAI, temperature: float
) -> None:
    full = await client.completions.create(
        **{**ASKED, "max_tokens": 60, "temperature": temperature, "seed": 5}
    )
    letter = full.choices[0].text[3]
    asked = {**ASKED, "max_tokens": 60, "temperature": temperature, "seed": 5, "stop": letter}
    least = {"min_tokens": 20, "ignore_eos": True}
    quick = await client.completions.create(**asked, extra_body=least)
    plain = await client.completions.create(**asked, extra_body={**least, **PLAIN})
    assert quick.choices[0].text == plain.choices[0].text
    assert quick.usage is not None
    assert quick.usage.completion_tokens >= 20
    short = await client.completions.create(**asked)
    assert short.usage is not None
    assert short.usage.completion_tokens < 20


async def test_usage_comes_with_every_chunk_where_that_is_asked(client: openai.AsyncOpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = (await streamed(client, **ASKED, stream_options=options))[1]
    told = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(told) == len(chunks) > 2
    assert told == sorted(told)


async def test_a_chat_goes_on_with_the_message_that_came(client: openai.AsyncOpenAI) -> None:
    said: list[Any] = [{"role": "user", "content": "hello"}]
    asked = {"model": ASKED["model"], "max_tokens": 8}
    first = await client.chat.completions.create(messages=said, **asked)
    said += [first.choices[0].message, {"role": "user", "content": "and?"}]
    second = await client.chat.completions.create(messages=said, **asked)
    said[1] = first.choices[0].message.model_dump()
    third = await client.chat.completions.create(messages=said, **asked)
    assert second.usage is not None
    assert third.usage is not None
    assert second.usage.prompt_tokens == third.usage.prompt_tokens


async def test_speculation_happens_at_all(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(**{**ASKED, "max_tokens": 400})
    receipt = answer.model_dump()["paceline"]
    assert receipt["drafted_tokens"] > 0
    assert receipt["accepted_tokens"] > 0


async def test_eight_at_once_get_the_texts_they_get_alone(client: openai.AsyncOpenAI) -> None:
    prompts = [
        "the quick",
        "brown fox",
        "jumps over",
        "the lazy dog",
        "hello",
        "world " * 60,
        "a",
        "dog " * 30,
    ]
    asked = [
        {**ASKED, "prompt": prompt, "max_tokens": 60 + 10 * at, "temperature": 0.8 * (at % 2), "seed": at}
        for at, prompt in enumerate(prompts)
    ]
    alone = [(await client.completions.create(**each, extra_body=PLAIN)).choices[0].text for each in asked]
    together = await asyncio.gather(*(client.completions.create(**each) for each in asked))
    assert [answer.choices[0].text for answer in together] == alone
    streams = await asyncio.gather(*(streamed(client, **each) for each in asked))
    assert [text for text, _ in streams] == alone


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_its_session_everywhere(fleet: Pods, stream: bool) -> None:
    asked = {**ASKED, "max_tokens": CONTEXT - 100, "stream": stream}
    before = fleet.verifier_status().committed_tokens
    async with httpx.AsyncClient() as client:
        going = asyncio.create_task(client.post(f"{fleet.http}/v1/completions", json=asked, timeout=60))
        await wait_until(lambda: fleet.verifier_status().sessions == 1, "the session runs")
        await wait_until(lambda: fleet.verifier_status().committed_tokens > before + 20, "it has tokens")
        going.cancel()
        await asyncio.wait({going})
    await wait_until(lambda: fleet.verifier_status().sessions == 0, "the verifier has dropped it", 5)
    await wait_until(lambda: fleet.drafter_status().sessions == 0, "the drafter has dropped it", 5)
    assert fleet.verifier_status().committed_tokens < before + CONTEXT - 100
    await wait_until(lambda: fleet.verifier_status().kv_used == 0, "its KV is free", 5)


async def begun(fleet: Pods) -> asyncio.StreamWriter:
    """A connection on which the first bytes of a longer body have been written."""
    host, _, port = fleet.http.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"model"')
    await writer.drain()
    return writer


async def test_a_client_that_goes_away_amid_its_body_is_no_error(fleet: Pods) -> None:
    writer = await begun(fleet)
    writer.close()
    gateway = fleet.pods["gateway"]
    await wait_until(lambda: "status=499" in gateway.log.read_text(), "the gateway has noticed")


def test_none_of_this_left_an_error_in_a_log(fleet: Pods) -> None:
    for pod in fleet.pods.values():
        text = pod.log.read_text()
        assert "Traceback" not in text
        assert "[error" not in text
