"""The Responses API as the official client speaks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from gateway.kept import Kept, MemoryKept, RedisKept
from gateway.prompt import Prompts
from paceline.session import FinishReason
from tests.faces import Faces, faces
from tests.saying_verifier import SayingVerifier
from tests.scripted_verifier import MODEL, serving
from tests.tiny import make_tiny_model
from tests.tool_talk import ARGUMENTS, ASKED, CALL, TEMPLATE, TEXT, WEATHER, with_template

TOOL: Any = {"type": "function", "strict": False, **WEATHER["function"]}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return Prompts(str(with_template(make_tiny_model(tmp_path_factory.mktemp("responses")), TEMPLATE)))


@asynccontextmanager
async def saying(
    prompts: Prompts, *texts: str, reason: FinishReason = FinishReason.STOP
) -> AsyncIterator[tuple[SayingVerifier, openai.AsyncOpenAI]]:
    verifier = SayingVerifier(*(list(prompts.from_text(text).ids()) for text in texts))
    verifier.reason = reason
    async with serving(verifier) as sessions, faces(sessions, prompts) as where, client(where) as made:
        yield verifier, made


def client(where: Faces) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{where.http}/v1", api_key="x", max_retries=0)


def prompt_of(verifier: SayingVerifier, prompts: Prompts) -> str:
    return prompts.text_of(list(verifier.opened[-1].prompt_ids))


async def test_a_response_is_made_kept_gone_on_with_and_forgotten(prompts: Prompts) -> None:
    async with saying(prompts, "Hello!", "Anna.") as (verifier, made):
        first = await made.responses.create(
            model=MODEL, input="I am Anna.", instructions="Be brief.", metadata={"a": "b"}, temperature=0
        )
        assert (first.status, first.output_text, first.metadata) == ("completed", "Hello!", {"a": "b"})
        assert first.usage is not None
        assert first.usage.input_tokens == len(verifier.opened[0].prompt_ids)
        assert first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens
        assert prompt_of(verifier, prompts) == "system: Be brief.\nuser: I am Anna.\nassistant:"
        assert (await made.responses.retrieve(first.id)).to_dict() == first.to_dict()

        second = await made.responses.create(
            model=MODEL, input="Who am I?", previous_response_id=first.id, store=False
        )
        assert (second.output_text, second.previous_response_id) == ("Anna.", first.id)
        assert (
            prompt_of(verifier, prompts) == "user: I am Anna.\nassistant: Hello!\nuser: Who am I?\nassistant:"
        )
        with pytest.raises(openai.NotFoundError):
            await made.responses.retrieve(second.id)
        await made.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await made.responses.create(model=MODEL, input="And now?", previous_response_id=first.id)
        assert caught.value.param == "previous_response_id"


async def test_tools_are_called_and_their_results_taken(prompts: Prompts) -> None:
    async with saying(prompts, TEXT, "It is sunny.") as (verifier, made):
        first = await made.responses.create(model=MODEL, input=ASKED, tools=[TOOL])
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
        call = first.output[2]
        assert call.type == "function_call"
        assert (call.name, call.arguments) == ("get_weather", ARGUMENTS)
        assert first.output_text == "Let me see."
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
        await made.responses.create(model=MODEL, input=[result], previous_response_id=first.id, tools=[TOOL])
        gone_on = prompt_of(verifier, prompts)
        assert f'"arguments": {ARGUMENTS}' in gone_on
        assert "<think>They ask for Rome.</think> Let me see." in gone_on
        assert "tool: sun" in gone_on
        items: Any = [*ASKED, *(item.to_dict() for item in first.output), result]
        await made.responses.create(model=MODEL, input=items, tools=[TOOL], store=False)
        assert prompt_of(verifier, prompts) == gone_on


@pytest.mark.parametrize("text", [TEXT, "Hello!", "", f"{CALL}\n{CALL} done"])
async def test_a_stream_comes_to_the_response(prompts: Prompts, text: str) -> None:
    async with saying(prompts, text) as (_, made):
        events: list[Any] = []
        async with made.responses.stream(model=MODEL, input="Hi", tools=[TOOL]) as stream:
            events.extend([event async for event in stream])
            final = await stream.get_final_response()
        whole = await made.responses.create(model=MODEL, input="Hi", tools=[TOOL])
        kept = await made.responses.retrieve(final.id)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert kept.output_text == final.output_text == whole.output_text
    said = [(item.type, getattr(item, "arguments", None)) for item in whole.output]
    assert [(item.type, getattr(item, "arguments", None)) for item in final.output] == said
    deltas: dict[str, str] = {}
    for event in events:
        if event.type.endswith(".delta"):
            deltas[event.item_id] = deltas.get(event.item_id, "") + event.delta
        elif event.type == "response.function_call_arguments.done":
            assert event.arguments == deltas.get(event.item_id, "")
        elif event.type in ("response.output_text.done", "response.reasoning_text.done"):
            assert event.text == deltas.get(event.item_id, "")


async def test_a_response_that_is_cut_is_incomplete(prompts: Prompts) -> None:
    async with saying(prompts, "Hello", reason=FinishReason.LENGTH) as (_, made):
        cut = await made.responses.create(model=MODEL, input="Hi", max_output_tokens=5)
        assert cut.status == "incomplete"
        assert cut.incomplete_details is not None
        assert cut.incomplete_details.reason == "max_output_tokens"
        stream = await made.responses.create(model=MODEL, input="Hi", stream=True)
        assert [event.type async for event in stream][-1] == "response.incomplete"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"previous_response_id": "resp_unknown"}, "previous_response_id"),
        ({"previous_response_id": "}{"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 5}}}},
            "text.format.schema",
        ),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"extra_body": {"prompt_logprobs": 2}}, "prompt_logprobs"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
async def test_what_is_wrong_is_named(prompts: Prompts, changes: dict[str, Any], param: str) -> None:
    asked = {"model": MODEL, "input": "Hi", **changes}
    async with saying(prompts, "Hello") as (_, made):
        with pytest.raises(openai.APIStatusError) as caught:
            await made.responses.create(**asked)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "asked",
    [
        {"background": False, "truncation": "disabled", "include": [], "service_tier": "auto"},
        {"include": ["reasoning.encrypted_content"], "reasoning": {"effort": None, "summary": "auto"}},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "tools": [], "tool_choice": "auto"},
        {"top_p": 0.9, "user": "u", "parallel_tool_calls": True, "metadata": {}, "top_logprobs": 0},
    ],
)
async def test_what_asks_for_nothing_is_taken(prompts: Prompts, asked: dict[str, Any]) -> None:
    async with saying(prompts, "Hello") as (_, made):
        assert (await made.responses.create(model=MODEL, input="Hi", **asked)).output_text == "Hello"


async def test_the_form_of_the_text_goes_to_the_verifier(prompts: Prompts) -> None:
    form: Any = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    async with saying(prompts, "{}") as (verifier, made):
        answer = await made.responses.create(model=MODEL, input="Hi", text={"format": form})
        assert answer.text is not None
        assert answer.text.to_dict() == {"format": form}
        assert verifier.opened[-1].sampling.constraint.text == '{"type": "object"}'
        await made.responses.create(model=MODEL, input="Hi", text={"format": {"type": "json_object"}})
        assert verifier.opened[-1].sampling.HasField("constraint")


async def test_memory_keeps_so_many_bytes_for_so_long() -> None:
    now = 0.0
    kept = MemoryKept(ttl_seconds=10, max_bytes=8, clock=lambda: now)
    await kept.put("a", b"aaaa")
    now = 5
    await kept.put("b", b"bbbb")
    assert [await kept.get(name) for name in "ab"] == [b"aaaa", b"bbbb"]
    now = 11
    assert [await kept.get(name) for name in "ab"] == [None, b"bbbb"]
    await kept.put("c", b"ccccc")
    assert [await kept.get(name) for name in "bc"] == [None, b"ccccc"]
    await kept.put("c", b"c")
    await kept.put("d", b"ddddddd")
    assert [await kept.get(name) for name in "cd"] == [b"c", b"ddddddd"]


async def test_redis_keeps_texts_for_other_gateways_until_they_are_forgotten(redis_url: str) -> None:
    one, other = (RedisKept(redis_url, ttl_seconds=60) for _ in range(2))
    stores: list[Kept] = [one, other]
    await one.put("resp_x", b"\x00text")
    assert await other.get("resp_x") == b"\x00text"
    await other.forget("resp_x")
    assert [await store.get("resp_x") for store in stores] == [None, None]
    for store in stores:
        await store.close()
