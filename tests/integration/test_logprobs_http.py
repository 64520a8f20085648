"""Log-probabilities and predictions through the official client and a real fleet."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from paceline.client import Chunk, GatewayClient, Generation
from paceline.logprobs import LogprobsWanted
from tests.pace import Pace
from tests.pods import MODEL, Pods

ASKED: dict[str, Any] = {"model": MODEL, "prompt": "the quick brown", "max_tokens": 24, "seed": 7}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello world"}],
    "max_tokens": 24,
    "seed": 7,
}


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    folder = tmp_path_factory.mktemp("logprobs")
    pace = Pace(folder / "pace")
    with (
        pytest.MonkeyPatch.context() as patch,
        # The tiny model's steps would be over before a tree comes.
        pace.steps_take(0.01),
        Pods(folder, tiny_model, redis_url) as made,
    ):
        for name, value in pace.variables.items():
            patch.setenv(name, value)
        made.verifier_module = "tests.paced_verifier"
        yield made.start()


@pytest.fixture
async def client(pods: Pods) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{pods.http}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_a_chats_tokens_are_its_text(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        **CHAT, logprobs=True, top_logprobs=3, extra_body={"skip_special_tokens": False}
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    said = b"".join(bytes(each.bytes or ()) for each in choice.logprobs.content)
    assert said.decode(errors="replace") == choice.message.content
    assert len(choice.logprobs.content) == 24
    for each in choice.logprobs.content:
        assert len(each.top_logprobs) == 3
        assert each.logprob <= each.top_logprobs[0].logprob <= 0
    plain = await client.chat.completions.create(**CHAT)
    assert plain.choices[0].logprobs is None


async def test_a_stream_has_those_of_the_whole(client: openai.AsyncOpenAI) -> None:
    whole = (await client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)).choices[0]
    chat: list[Any] = []
    stream = await client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2, stream=True)
    async for chunk in stream:
        logprobs = chunk.choices[0].logprobs
        chat += [] if logprobs is None else logprobs.content or []
    assert whole.logprobs is not None
    assert chat == whole.logprobs.content
    parts = [
        chunk.choices[0].logprobs
        async for chunk in await client.completions.create(**ASKED, logprobs=1, stream=True)
    ]
    alone = (await client.completions.create(**ASKED, logprobs=1)).choices[0].logprobs
    assert alone is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [each for part in parts if part for each in getattr(part, name)]
        assert streamed == getattr(alone, name)


async def test_an_echoed_prompt_is_scored(client: openai.AsyncOpenAI) -> None:
    answer = (await client.completions.create(**ASKED, echo=True, logprobs=2)).choices[0]
    text = answer.text
    told = answer.logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.tokens is not None
    assert told.text_offset is not None
    assert "".join(told.tokens[:3]) == text[: told.text_offset[3]]
    assert told.token_logprobs[0] is None
    assert all(math.isfinite(each) for each in told.token_logprobs[1:])
    plain = await client.completions.create(**ASKED, extra_body={"prompt_logprobs": 2})
    of_prompt = plain.choices[0].model_dump()["prompt_logprobs"]
    assert of_prompt[0] is None
    prompt_tokens = len(of_prompt)
    # Of each position the token's own is among them: it is what the echo says.
    for place in range(1, prompt_tokens):
        values = [each["logprob"] for each in of_prompt[place].values()]
        assert told.token_logprobs[place] in values
    with pytest.raises(openai.BadRequestError, match="one piece"):
        await client.completions.create(**ASKED, echo=True, logprobs=2, stream=True)


async def test_the_best_of_several_is_told(client: openai.AsyncOpenAI) -> None:
    several = await client.completions.create(**ASKED, n=4, logprobs=0)
    means = {
        choice.text: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
        for choice in several.choices
        if choice.logprobs and choice.logprobs.token_logprobs
    }
    best = await client.completions.create(**ASKED, n=2, best_of=4)
    ranked = sorted(means, key=lambda text: -means[text])
    assert [choice.text for choice in best.choices] == ranked[:2]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.choices[0].logprobs is None
    assert best.usage is not None
    assert best.usage.completion_tokens == 4 * 24


async def test_a_right_prediction_is_accepted(client: openai.AsyncOpenAI) -> None:
    asked = {**CHAT, "max_tokens": 120, "temperature": 0.9}
    plain = await client.chat.completions.create(**asked, extra_body={"speculation": {"enabled": False}})
    text = plain.choices[0].message.content or ""
    predicted = {"type": "content", "content": text}
    answer = await client.chat.completions.create(**asked, prediction=predicted)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == text
    details = answer.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 10
    wrong = await client.chat.completions.create(
        **asked, prediction={"type": "content", "content": "something else altogether " * 9}
    )
    assert wrong.choices[0].message.content == text
    assert wrong.usage.completion_tokens_details.rejected_prediction_tokens > 0


async def test_a_response_is_drafted_from_its_prediction(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "hello world", "max_output_tokens": 120}
    plain = await client.responses.create(**asked, extra_body={"seed": 7, "speculation": {"enabled": False}})
    predicted = {"type": "content", "content": plain.output_text}
    answer = await client.responses.create(**asked, extra_body={"seed": 7, "prediction": predicted})
    assert answer.output_text == plain.output_text
    assert answer.model_dump()["paceline"]["sources"]["prediction"]["accepted_tokens"] > 10


async def test_both_faces_say_the_same(client: openai.AsyncOpenAI, pods: Pods) -> None:
    answer = await client.completions.create(
        **ASKED, logprobs=2, temperature=0.5, extra_body={"prompt_logprobs": 1}
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    async with GatewayClient(pods.grpc) as grpc:
        asked = Generation(
            text=ASKED["prompt"],
            max_tokens=24,
            seed=7,
            temperature=0.5,
            logprobs=LogprobsWanted(top=2, prompt_top=1),
            prediction=choice.text,
        )
        chunks = [event async for event in grpc.generate(asked) if isinstance(event, Chunk)]
    assert "".join(chunk.text for chunk in chunks) == choice.text
    scores = [score for chunk in chunks for score in chunk.logprobs]
    assert [score.logprob for score in scores] == choice.logprobs.token_logprobs
    of_prompt = [score.logprob for chunk in chunks for score in chunk.prompt_logprobs]
    told = choice.model_dump()["prompt_logprobs"][1:]
    assert all(
        logprob in [each["logprob"] for each in position.values()]
        for logprob, position in zip(of_prompt, told, strict=True)
    )
    assert sum(chunk.accepted for chunk in chunks) > 0
