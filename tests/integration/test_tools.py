"""Tools over both faces, from the client's messages to the calls in what a model says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from transformers import AutoTokenizer, LlamaConfig

from gateway.chat import Chat, ChatTurn
from gateway.prompt import Prompts
from gateway.tools.choice import ToolUse
from paceline.client import (
    ChatMessage,
    Chunk,
    Finished,
    GatewayClient,
    GatewayError,
    Generation,
    Tool,
    ToolCall,
)
from paceline.session import FinishReason
from tests.faces import Faces, faces
from tests.pods import Pods
from tests.saying_verifier import SayingVerifier
from tests.scripted_verifier import MODEL, serving
from tests.tiny import make_tiny_model
from tests.tool_talk import ARGUMENTS, ASKED, CALL, TEMPLATE, TEXT, WEATHER, with_template


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(make_tiny_model(tmp_path_factory.mktemp("tools")), TEMPLATE)


@pytest.fixture(scope="module")
def prompts(model: Path) -> Prompts:
    return Prompts(str(model))


def ids(prompts: Prompts, text: str) -> list[int]:
    return list(prompts.from_text(text).ids())


@asynccontextmanager
async def saying(prompts: Prompts, *texts: str, **how: Any) -> AsyncIterator[tuple[SayingVerifier, Faces]]:
    verifier = SayingVerifier(*(ids(prompts, text) for text in texts), **how)
    async with serving(verifier) as sessions, faces(sessions, prompts) as where:
        yield verifier, where


def client(where: Faces) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{where.http}/v1", api_key="x", max_retries=0)


def prompt_of(verifier: SayingVerifier, prompts: Prompts) -> str:
    return prompts.detokenizer().push(list(verifier.opened[-1].prompt_ids))


async def test_a_call_is_told_whole_and_what_was_told_is_taken_back(prompts: Prompts) -> None:
    async with saying(prompts, TEXT, "It is sunny.") as (verifier, where):
        first = await client(where).chat.completions.create(model=MODEL, messages=ASKED, tools=[WEATHER])
        (choice,) = first.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        assert choice.message.to_dict()["reasoning_content"] == "They ask for Rome."
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("get_weather", ARGUMENTS)
        assert 'tools: {"type": "function"' in prompt_of(verifier, prompts)

        result = {"role": "tool", "tool_call_id": call.id, "content": "sun, 30 degrees"}
        messages = [*ASKED, choice.message.to_dict(), result]
        second = await client(where).chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == "It is sunny."
    assert second.choices[0].finish_reason == "stop"
    told = prompt_of(verifier, prompts)
    assert f'"arguments": {ARGUMENTS}' in told
    assert "<think>They ask for Rome.</think> Let me see." in told
    assert "tool: sun, 30 degrees" in told


@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_a_call_is_streamed_however_its_text_comes(prompts: Prompts, piece: int) -> None:
    async with saying(prompts, TEXT, piece=piece) as (_, where):
        stream = await client(where).chat.completions.create(
            model=MODEL, messages=ASKED, tools=[WEATHER], stream=True
        )
        deltas = [chunk.choices[0] async for chunk in stream]
    told = added(choice.delta.to_dict() for choice in deltas)
    assert told["content"] == "Let me see."
    assert told["reasoning_content"] == "They ask for Rome."
    assert told["calls"] == {0: ("get_weather", ARGUMENTS)}
    assert [choice.finish_reason for choice in deltas if choice.finish_reason] == ["tool_calls"]


def added(deltas: Iterable[Any]) -> dict[str, Any]:
    """What deltas come to, as clients add them up."""
    told: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": {}, "ids": {}}
    for delta in deltas:
        for name in ("content", "reasoning_content"):
            told[name] += delta.get(name) or ""
        for call in delta.get("tool_calls", []):
            index, function = call["index"], call["function"]
            name, arguments = told["calls"].get(index, ("", ""))
            told["calls"][index] = (name + function.get("name", ""), arguments + function["arguments"])
            told["ids"].setdefault(index, call.get("id"))
    return told


async def test_a_stream_that_breaks_anywhere_is_resumed_with_the_same_calls(prompts: Prompts) -> None:
    """Also when its verifiers die again and again meanwhile."""
    body = {"model": MODEL, "messages": ASKED, "tools": [WEATHER], "stream": True}
    async with (
        saying(prompts, f"{TEXT}\n{CALL} tail <tool_", piece=1, dies_after=40) as (_, where),
        httpx.AsyncClient(timeout=60) as http,
    ):
        answer = await http.post(f"{where.http}/v1/chat/completions", json=body, headers={"x-event-ids": "1"})
        events = list(events_of(answer.text))
        whole = added(event["choices"][0]["delta"] for _, event in events)
        assert whole["calls"] == dict.fromkeys((0, 1), ("get_weather", ARGUMENTS))
        assert whole["content"] == "Let me see. tail <tool_"
        session = events[0][0].split(":")[0]
        for count, (mark, _) in enumerate(events, 1):
            rest = await http.get(
                f"{where.http}/v1/sessions/{session}/events", headers={"last-event-id": mark}
            )
            both = [event for _, event in events[:count]] + [event for _, event in events_of(rest.text)]
            assert added(event["choices"][0]["delta"] for event in both) == whole
            assert both[-1]["choices"][0]["finish_reason"] == "tool_calls"


def events_of(text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for event in text.split("\n\n"):
        if "data: {" in event:
            head, _, data = event.partition("data: ")
            yield head.removeprefix("id: ").strip(), json.loads(data)


async def test_grpc_tells_the_same(prompts: Prompts) -> None:
    parameters = WEATHER["function"]["parameters"]
    wanted = Generation(
        chat=[
            ChatMessage("user", "Rome?"),
            ChatMessage("assistant", tool_calls=[ToolCall("call_1", "get_weather", ARGUMENTS)]),
            ChatMessage("tool", "sun", tool_call_id="call_1"),
            ChatMessage("user", "And now?"),
        ],
        tools=[Tool("get_weather", "The weather of a city.", parameters)],
    )
    async with saying(prompts, TEXT) as (verifier, where), GatewayClient(where.grpc) as grpc_client:
        events = [event async for event in grpc_client.generate(wanted)]
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert "".join(chunk.text for chunk in chunks) == "Let me see."
    assert "".join(chunk.reasoning for chunk in chunks) == "They ask for Rome."
    calls = [call for chunk in chunks for call in chunk.tool_calls]
    assert (calls[0].name, calls[0].id[:5]) == ("get_weather", "call_")
    assert "".join(call.arguments for call in calls) == ARGUMENTS
    assert sum(chunk.characters for chunk in chunks) == len(TEXT)
    assert isinstance(events[-1], Finished)
    told = prompt_of(verifier, prompts)
    assert "tool: sun" in told
    assert f'"arguments": {ARGUMENTS}' in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tool_choice": "none"}, {"content": f"Let me see.\n{CALL}", "calls": {}}),
        ({"tools": []}, {"content": f"Let me see.\n{CALL}", "calls": {}}),
        ({"include_reasoning": False}, {"reasoning_content": ""}),
        ({"parallel_tool_calls": False}, {"calls": {0: ("get_weather", ARGUMENTS)}}),
    ],
)
async def test_what_the_client_wants_told_is_told(
    prompts: Prompts, changes: dict[str, Any], told: dict[str, Any]
) -> None:
    text = TEXT + CALL if "parallel_tool_calls" in changes else TEXT
    body = {"model": MODEL, "messages": ASKED, "tools": [WEATHER], "stream": True, **changes}
    async with saying(prompts, text) as (_, where), httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(f"{where.http}/v1/chat/completions", json=body)
    heard = added(event["choices"][0]["delta"] for _, event in events_of(answer.text))
    assert {name: heard[name] for name in told} == told


async def test_an_answer_that_is_cut_within_a_call_says_so(prompts: Prompts) -> None:
    async with saying(prompts, TEXT[:-30]) as (verifier, where):
        verifier.reason = FinishReason.LENGTH
        answer = await client(where).chat.completions.create(model=MODEL, messages=ASKED, tools=[WEATHER])
    assert answer.choices[0].finish_reason == "length"
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert ARGUMENTS.startswith(call.function.arguments)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"messages": [{"role": "tool", "content": "sun"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "x"}]}, "messages[0].tool_call_id"),
    ],
)
async def test_what_is_wrong_with_tools_is_named(
    prompts: Prompts, changes: dict[str, Any], param: str
) -> None:
    body = {"model": MODEL, "messages": ASKED, "tools": [WEATHER], **changes}
    async with saying(prompts, "fine") as (_, where), httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(f"{where.http}/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_arguments_that_are_no_json_or_too_deep_are_rendered_as_text(prompts: Prompts) -> None:
    for arguments in ("not json", "[" * 5000, '{"a": NaN}'):
        called = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages: list[Any] = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [called]}]
        async with saying(prompts, "fine") as (verifier, where):
            await client(where).chat.completions.create(model=MODEL, messages=[*messages, *ASKED])
        assert json.dumps(arguments) in prompt_of(verifier, prompts)


async def test_grpc_names_what_is_wrong_too(prompts: Prompts) -> None:
    wanted = Generation(chat=[ChatMessage("tool", "sun")])
    async with saying(prompts, "fine") as (_, where), GatewayClient(where.grpc) as grpc_client:
        with pytest.raises(GatewayError, match="must name its call"):
            [event async for event in grpc_client.generate(wanted)]


async def test_a_template_without_tools_has_them_in_words(tmp_path: Path) -> None:
    plain = Prompts(str(make_tiny_model(tmp_path)))
    call = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'
    async with saying(plain, call, "It is sunny.") as (verifier, where):
        first = await client(where).chat.completions.create(model=MODEL, messages=ASKED, tools=[WEATHER])
        told = prompt_of(verifier, plain)
        assert told.startswith("system: You can call these functions.")
        assert '"description": "The weather of a city."' in told
        message = first.choices[0].message
        assert message.tool_calls is not None
        result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sun"}
        called: Any = message.to_dict()
        await client(where).chat.completions.create(
            model=MODEL, messages=[*ASKED, called, result], tools=[WEATHER]
        )
    told = prompt_of(verifier, plain)
    assert f"assistant: {call}\n" in told
    assert 'user: {"tool_response": {"name": "get_weather", "content": "sun"}}\n' in told


def test_marks_that_are_special_tokens_are_read_all_the_same(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig.from_pretrained(tmp_path, vocab_size=600).save_pretrained(tmp_path)
    prompts = Prompts(str(tmp_path))
    reading = prompts.reading(Chat([ChatTurn("user", "hi")], [WEATHER]), ToolUse([WEATHER]))
    said = ids(prompts, f"é {CALL} é")
    told = prompts.detokenizer(reading)
    assert "".join(told.push([token]) for token in said) + told.flush() == f"é {CALL} é"
    silent = prompts.detokenizer()
    assert "<tool_call>" not in silent.push(said) + silent.flush()


CITY: Any = {
    "type": "function",
    "function": {
        "name": "go",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "go"}}])
async def test_a_call_that_is_demanded_is_made_and_fits_its_schema(fleet: Pods, choice: Any) -> None:
    """By a model that knows of nothing."""
    async with openai.AsyncOpenAI(base_url=f"{fleet.http}/v1", api_key="x", max_retries=0) as made:
        for seed in range(3):
            answer = await made.chat.completions.create(
                model="tiny",
                messages=ASKED,
                tools=[CITY],
                tool_choice=choice,
                parallel_tool_calls=False,
                seed=seed,
            )
            assert answer.choices[0].finish_reason == "tool_calls"
            assert answer.choices[0].message.content is None
            (call,) = answer.choices[0].message.tool_calls or []
            assert call.type == "function"
            assert call.function.name == "go"
            assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
