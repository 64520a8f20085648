"""Texts under constraints, by a real fleet: valid, the same with drafts and without, after failures too."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import jsonschema
import pytest

from paceline.constraints.constraint import Constraint, Kind
from paceline.net import wire
from paceline.v1 import gateway_pb2, gateway_pb2_grpc
from tests.pods import MODEL, Pods
from tests.waiting import wait_until

PROMPT = "the quick brown fox"
PLAIN = {"speculation": {"enabled": False}}
DRAWS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1.0, "top_p": 0.95, "seed": 5},
    "other seed": {"temperature": 0.7, "seed": 11},
}
WORD = {"type": "string", "maxLength": 12}
SMALL = {"type": "integer", "minimum": -50, "maximum": 999}
PERSON = {
    "type": "object",
    "properties": {
        "a long name of a field": WORD,
        "age": SMALL,
        "kind": {"enum": ["person", "robot", None]},
        "tags": {"type": "array", "items": WORD, "maxItems": 3},
    },
    "required": ["a long name of a field", "age", "kind", "tags"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": PERSON,
    "people": {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
    "either": {"anyOf": [PERSON, {"type": "array", "items": SMALL, "maxItems": 4}]},
    "numbers": {"type": "array", "items": SMALL, "minItems": 30, "maxItems": 40},
    "patterns": {
        "type": "object",
        "properties": {"id": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}, "on": {"format": "date"}},
        "required": ["id"],
        "additionalProperties": False,
    },
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"value": {"type": "boolean"}, "left": {"$ref": "#/$defs/leaf"}},
                "required": ["value", "left"],
                "additionalProperties": False,
            },
            "leaf": {"enum": [1, 2]},
        },
        "$ref": "#/$defs/node",
    },
}


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": 900, "temperature": 0, **fields}


@pytest.fixture
async def client(fleet: Pods) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=fleet.http, timeout=180) as made:
        yield made


async def choice(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json=asked(**fields))
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return {**made["choices"][0], "receipt": made["paceline"]}


@pytest.mark.parametrize("draws", DRAWS)
async def test_json_is_what_its_schema_describes_and_drafts_change_nothing(
    client: httpx.AsyncClient, draws: str
) -> None:
    async def both(schema: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        fields = {"structured_outputs": {"json": schema}, **DRAWS[draws]}
        drafted, plain = await asyncio.gather(choice(client, **fields), choice(client, **fields, **PLAIN))
        return drafted, plain

    answers = await asyncio.gather(*(both(schema) for schema in SCHEMAS.values()))
    for (name, schema), (drafted, plain) in zip(SCHEMAS.items(), answers, strict=True):
        assert drafted["text"] == plain["text"], name
        assert (drafted["finish_reason"], plain["finish_reason"]) == ("stop", "stop"), name
        jsonschema.validate(json.loads(drafted["text"]), schema)


async def test_what_is_forced_is_verified_as_a_draft(client: httpx.AsyncClient) -> None:
    made = await choice(client, structured_outputs={"json": PERSON})
    assert made["receipt"]["sources"]["grammar"]["accepted_tokens"] > 5


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": "(yes|no), [a-f]{3,9}!"}, "(yes|no), [a-f]{3,9}!"),
        ({"choice": ["left", "right", "léft"]}, "left|right|léft"),
        (
            {"grammar": 'start: "<" WORD ">" ("," WORD)~1..3\nWORD: /[a-z]{1,5}/'},
            "<[a-z]{1,5}>(,[a-z]{1,5}){1,3}",
        ),
        (
            {"grammar": 'root ::= item ("," item) ("," item)?\nitem ::= "ab" | "c" [0-9]'},
            "(ab|c[0-9])(,(ab|c[0-9])){1,2}",
        ),
    ],
    ids=["regex", "choice", "lark", "gbnf"],
)
async def test_a_text_is_one_of_the_language(
    client: httpx.AsyncClient, constraint: dict[str, Any], pattern: str, draws: str
) -> None:
    fields = {"structured_outputs": constraint, **DRAWS[draws]}
    drafted, plain = await choice(client, **fields), await choice(client, **fields, **PLAIN)
    assert drafted["text"] == plain["text"]
    assert re.fullmatch(pattern, drafted["text"])
    assert drafted["finish_reason"] == "stop"


async def test_both_faces_and_streams_give_the_same_text(client: httpx.AsyncClient, fleet: Pods) -> None:
    schema = SCHEMAS["people"]
    whole = (await choice(client, structured_outputs={"json": schema}))["text"]
    body = asked(
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}, stream=True
    )
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [
            line.removeprefix("data: ") async for line in answer.aiter_lines() if line.startswith("data: {")
        ]
    assert "".join(each["choices"][0]["text"] for each in map(json.loads, lines) if each["choices"]) == whole
    request = gateway_pb2.GenerateRequest(
        text=PROMPT,
        temperature=0,
        max_tokens=900,
        constraint=wire.constraint_to_proto(Constraint.schema(schema)),
    )
    async with grpc.aio.insecure_channel(fleet.grpc) as channel:
        events = gateway_pb2_grpc.GatewayServiceStub(channel).Generate(request)
        assert "".join([event.chunk.text async for event in events if event.HasField("chunk")]) == whole


async def test_a_chat_answers_in_json(client: httpx.AsyncClient) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": PERSON, "strict": True},
        },
        "max_completion_tokens": 900,
        "seed": 3,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), PERSON)
    body["response_format"] = {"type": "json_object"}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "fields", [{"ignore_eos": True}, {"min_tokens": 100}, {"min_tokens": 100, "temperature": 1}]
)
async def test_a_complete_text_ends_whatever_was_asked(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    made = await choice(client, structured_outputs={"choice": ["left"]}, **fields)
    assert (made["text"], made["finish_reason"]) == ("left", "stop")


async def test_the_end_waits_for_min_tokens_where_the_text_can_go_on(client: httpx.AsyncClient) -> None:
    short = await choice(client, structured_outputs={"regex": "(ab )*"}, seed=1, temperature=1)
    made = await choice(client, structured_outputs={"regex": "(ab )*"}, seed=1, temperature=1, min_tokens=60)
    assert re.fullmatch("(ab )*", made["text"])
    assert len(made["text"]) > len(short["text"])


async def test_a_stop_string_ends_a_text_in_the_middle(client: httpx.AsyncClient) -> None:
    made = await choice(client, structured_outputs={"regex": "abc{50}"}, stop="ccc")
    assert (made["text"], made["finish_reason"]) == ("ab", "stop")


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "strin"}},
                }
            },
            "response_format.json_schema.schema",
            "strin",
        ),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json", "uniqueItems"),
        ({"guided_regex": "(a"}, "guided_regex", "regex"),
        ({"structured_outputs": {"grammar": "start: other"}}, "structured_outputs.grammar", "other"),
    ],
)
async def test_a_bad_constraint_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, why: str
) -> None:
    answer = await client.post("/v1/completions", json=asked(**fields))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert why in error["message"]


async def test_a_bad_constraint_over_grpc_names_its_field(fleet: Pods) -> None:
    constraint = wire.constraint_to_proto(Constraint(Kind.REGEX, "(a"))
    request = gateway_pb2.GenerateRequest(text=PROMPT, constraint=constraint)
    async with grpc.aio.insecure_channel(fleet.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="constraint: ") as raised:
            await anext(aiter(gateway_pb2_grpc.GatewayServiceStub(channel).Generate(request)))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


HOSTILE: dict[str, dict[str, Any]] = {
    "exponential": {"regex": "(.*a.{20}){3}|(a|b)*a(a|b){200}"},
    "deep schema": {"json": '{"items":' * 5_000 + "{}" + "}" * 5_000},
    "megabytes": {"grammar": "start: " + " | ".join(f'"{each}"' for each in range(4_000))},
    "empty": {"grammar": 'start: start "a"'},
    "many choices": {"choice": [f"{each * 7919 % 1_000_003} {each}" for each in range(4_000)]},
    "references": {
        "json": {
            "$defs": {f"d{each}": {"$ref": f"#/$defs/d{(each + 1) % 900}"} for each in range(900)},
            "$ref": "#/$defs/d0",
        }
    },
    "unicode": {"regex": r"(\p{L}{1,400}\p{N}{1,400}[^\p{Lu}]{1,400}){1,400}"},
    "repetition": {"regex": "(a{1000}b?){1000000}"},
    "alternatives": {
        "json": {"anyOf": [{"properties": {f"p{each}": {"pattern": "(a|b)*c{9}"}}} for each in range(600)]}
    },
    "nested": {"regex": "((((((a+)*b?)+c*)+)*d?)+)+e" * 40},
    "multiples": {"json": {"type": "integer", "multipleOf": 99_999_989}},
    "long": {"json": {"type": "string", "minLength": 1_000_000, "pattern": "^(a|b|ab)*$"}},
    "remote": {"json": {"$ref": "http://127.0.0.1:9/schema.json"}},
}


@asynccontextmanager
async def running_on(client: httpx.AsyncClient) -> AsyncIterator[list[str]]:
    """The chunks, as they come, of a text that does not end by itself."""
    chunks: list[str] = []

    async def read() -> None:
        body = asked(max_tokens=14_000, ignore_eos=True, stream=True)
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = aiter(answer.aiter_lines())
            while True:
                chunks.append(await anext(lines))

    reading = asyncio.create_task(read())
    try:
        yield chunks
        assert not reading.done()
    finally:
        reading.cancel()


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_constraint_is_refused_or_bounded_while_others_go_on(
    client: httpx.AsyncClient, name: str
) -> None:
    async with running_on(client) as chunks:
        await wait_until(lambda: len(chunks) > 5, "the other session's text comes")
        before = len(chunks)
        body = asked(structured_outputs=HOSTILE[name], max_tokens=30)
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code in (200, 400, 413), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]["message"]
        await wait_until(lambda: len(chunks) > before + 5, "the other session goes on")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with Pods(tmp_path_factory.mktemp("two"), tiny_model, redis_url, verifiers=2) as pods:
        yield pods.start()


@pytest.mark.parametrize("draws", ["greedy", "seeded"])
async def test_a_session_that_moves_is_held_to_its_constraint(
    two: Pods, client: httpx.AsyncClient, draws: str
) -> None:
    schema = {"type": "array", "items": PERSON, "minItems": 12, "maxItems": 12}
    body = asked(structured_outputs={"json": schema}, max_tokens=6000, stream=True, **DRAWS[draws])
    text, killed, reason = "", False, None
    async with httpx.AsyncClient(base_url=two.http, timeout=180) as here:
        undisturbed = (await here.post("/v1/completions", json={**body, "stream": False})).json()["choices"][
            0
        ]
        async with here.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                for each in json.loads(line[6:])["choices"]:
                    text += each["text"]
                    reason = each["finish_reason"] or reason
                if len(text) > 60 and not killed:
                    killed = True
                    busy = next(each for each in two.verifiers if two.verifier_status(each).sessions)
                    two.pods[busy].kill()
    assert killed
    assert (text, reason) == (undisturbed["text"], "stop")
    jsonschema.validate(json.loads(text), schema)
    two.launch(busy)
    two.pods[busy].until(lambda: two.serving(busy))
    two.until_all_are_seen()
