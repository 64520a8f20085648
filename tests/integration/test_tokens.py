"""Ids of texts and texts of ids, headers, and fields that are ignored, at a real gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from tests.pods import MODEL, Pods
from tests.tiny import CONTEXT

ASKED: dict[str, Any] = {"model": MODEL, "prompt": "the quick brown fox", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def client(fleet: Pods) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.http, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def told(client: httpx.Client, route: str, **asked: Any) -> dict[str, Any]:
    answer = client.post(route, json=asked)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize("text", ["the quick brown fox", "", "a </s> b", "word " * 4000])
def test_a_texts_ids_are_those_of_the_prompt(client: httpx.Client, tokenizer: Any, text: str) -> None:
    body = told(client, "/tokenize", prompt=text, return_token_strs=True)
    ids = tokenizer(text)["input_ids"]
    assert body == {
        "count": len(ids),
        "max_model_len": CONTEXT,
        "tokens": ids,
        "token_strs": tokenizer.convert_ids_to_tokens(ids),
    }
    bare = told(client, "/tokenize", prompt=text, add_special_tokens=False)
    assert bare["tokens"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert bare["token_strs"] is None
    assert told(client, "/detokenize", tokens=bare["tokens"]) == {"prompt": text}


def test_a_chats_ids_are_as_many_as_a_reply_to_it_counts(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "hello"}]
    body = told(client, "/tokenize", model=MODEL, messages=messages)
    asked = {"model": MODEL, "messages": messages, "max_tokens": 1, "return_token_ids": True}
    reply = told(client, "/v1/chat/completions", **asked)
    assert body["tokens"] == reply["prompt_token_ids"]
    open_ended = told(client, "/tokenize", messages=messages, add_generation_prompt=False)
    assert open_ended["count"] <= body["count"]


def test_the_text_of_many_ids(client: httpx.Client, tokenizer: Any) -> None:
    ids = [5 + each % 300 for each in range(9000)]
    assert told(client, "/detokenize", tokens=ids) == {"prompt": tokenizer.decode(ids)}


@pytest.mark.parametrize(
    ("route", "asked", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "gpt-9"}, "model"),
        ("/tokenize", {"prompt": "a", "zebra": 1}, "zebra"),
        ("/detokenize", {"tokens": [512]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_what_has_no_ids_or_no_text_is_refused(
    client: httpx.Client, route: str, asked: dict[str, Any], param: str
) -> None:
    answer = client.post(route, json=asked)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_a_response_names_its_session_seed_and_trace(client: httpx.Client) -> None:
    whole = client.post("/v1/completions", json={**ASKED, "n": 2, "seed": 5})
    receipts = whole.json()["paceline"]["choices"]
    assert whole.headers["x-paceline-session-id"] == ",".join(each["session_id"] for each in receipts)
    assert whole.headers["x-paceline-seed"] == "5"
    stream = client.post("/v1/completions", json={**ASKED, "stream": True})
    session_id = stream.headers["x-paceline-session-id"]
    assert f'"session_id":"{session_id}"' in stream.text
    assert f'"seed":{stream.headers["x-paceline-seed"]}' in stream.text
    again = client.get(f"/v1/sessions/{session_id}/events")
    assert again.headers["x-paceline-session-id"] == session_id
    assert again.headers["x-paceline-seed"] == stream.headers["x-paceline-seed"]
    for answer in (whole, stream, again):
        assert int(answer.headers["openai-processing-ms"]) >= 0
        assert answer.headers["x-request-id"]


def test_a_gateway_may_ignore_what_it_does_not_know_and_says_so(fleet: Pods, client: httpx.Client) -> None:
    gateway = fleet.start_gateway("gateway-lenient", "--unknown-fields", "ignore")
    asked = {**ASKED, "zebra": 1, "stream_options": None}
    plain = client.post("/v1/completions", json=ASKED).json()
    assert client.post("/v1/completions", json=asked).json()["error"]["param"] == "zebra"
    answer = httpx.post(f"{gateway.http}/v1/completions", json=asked, timeout=60)
    assert answer.headers["x-paceline-ignored-fields"] == "zebra"
    assert answer.json()["choices"] == plain["choices"]
    stream = httpx.post(f"{gateway.http}/v1/completions", json={**asked, "stream": True}, timeout=60)
    assert stream.headers["x-paceline-ignored-fields"] == "zebra"
    known = httpx.post(f"{gateway.http}/v1/completions", json=ASKED, timeout=60)
    assert "x-paceline-ignored-fields" not in known.headers
