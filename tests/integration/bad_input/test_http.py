"""Bad requests over HTTP: each is answered with its own OpenAI-style error."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.bad_input import COMPLETION, TOO_LONG
from tests.pods import MODEL, Pods
from tests.tiny import CONTEXT, VOCAB

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def refused(fleet: Pods, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{fleet.http}/v1/{path}", content=content, timeout=30)
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    ("changes", "status", "code", "param", "why"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found", "model", "'gpt-9' does not exist"),
        ({"model": ""}, 400, "empty_string", "model", "at least 1 character"),
        ({"prompt": ""}, 400, "invalid_value", "prompt", "the prompt is empty"),
        ({"prompt": []}, 400, "empty_array", "prompt", "at least 1 item"),
        ({"prompt": [VOCAB]}, 400, "invalid_value", "prompt", "token 512 is not in the vocabulary of 512"),
        ({"prompt": 5}, 400, "invalid_type", "prompt", "must be a string or an array"),
        (
            {"prompt": TOO_LONG},
            400,
            "context_length_exceeded",
            "prompt",
            f"{CONTEXT + 1} tokens, the model's context {CONTEXT}",
        ),
        (
            {"prompt": TOO_LONG[:CONTEXT]},
            400,
            "context_length_exceeded",
            "prompt",
            "at least one must be left",
        ),
        (
            {"prompt": [5], "max_tokens": CONTEXT},
            400,
            "context_length_exceeded",
            "max_tokens",
            f"at most {CONTEXT - 1}",
        ),
        ({"max_tokens": 0}, 400, "integer_below_min_value", "max_tokens", "at least 1"),
        ({"max_tokens": "4"}, 400, "invalid_type", "max_tokens", "must be an integer, not a string"),
        ({"temperature": -1}, 400, "integer_below_min_value", "temperature", "at least 0"),
        ({"temperature": "hot"}, 400, "invalid_type", "temperature", "must be a number"),
        ({"top_p": -1}, 400, "integer_below_min_value", "top_p", "at least 0"),
        ({"top_k": VOCAB + 1}, 400, "integer_above_max_value", "top_k", "vocabulary's 512"),
        ({"min_p": 2}, 400, "integer_above_max_value", "min_p", "at most 1"),
        ({"seed": -2}, 400, "integer_below_min_value", "seed", "at least 0"),
        ({"stop": ["a"] * 5}, 400, "array_above_max_length", "stop", "at most 4"),
        ({"stream": "yes"}, 400, "invalid_type", "stream", "must be a boolean"),
        (
            {"stream_options": {"include_usage": True}},
            400,
            "invalid_value",
            "stream_options",
            "only taken with stream",
        ),
        ({"stop_token_ids": [VOCAB]}, 400, "invalid_value", "stop_token_ids", "id 512 at index 0 is not in"),
        ({"min_tokens": 5}, 400, "integer_above_max_value", "min_tokens", "at most max_tokens's 4"),
        ({"logprobs": 21}, 400, "integer_above_max_value", "logprobs", "at most 20"),
        ({"prediction": {"type": "text"}}, 400, "invalid_value", "prediction", "content"),
        ({"n": 129}, 400, "integer_above_max_value", "n", "at most 128"),
        ({"best_of": 129}, 400, "integer_above_max_value", "best_of", "at most 128"),
        ({"suffix": "x"}, 400, "unsupported_parameter", "suffix", "not supported yet"),
        ({"truncate_prompt_tokens": 0}, 400, "invalid_value", "truncate_prompt_tokens", "at least 1"),
        ({"cache_salt": ""}, 400, "empty_string", "cache_salt", "at least 1 character"),
        ({"temprature": 1}, 400, "unknown_parameter", "temprature", "unrecognized request argument"),
    ],
)
def test_a_bad_completion(
    fleet: Pods, changes: dict[str, Any], status: int, code: str | None, param: str, why: str
) -> None:
    for stream in ({}, {"stream": True}) if "stream" not in " ".join(changes) else ({},):
        got, error = refused(fleet, "completions", {**COMPLETION, **changes, **stream})
        assert (got, error["code"], error["param"].split(".")[0]) == (status, code, param)
        assert why in error["message"]
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x" * 3 * CONTEXT}]}, "messages"),
        ({"max_tokens": CONTEXT}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": CONTEXT}, "max_completion_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ],
)
def test_a_bad_chat(fleet: Pods, changes: dict[str, Any], param: str) -> None:
    status, error = refused(fleet, "chat/completions", {**CHAT, **changes})
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"model": "tiny", "prompt": "\xff\xfe"}', 400, "not UTF-8"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 400, "surrogate"),
        (b'{"model": "\\ud800", "prompt": "x"}', 400, "surrogate"),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400, "not JSON"),
        (b'{"model": "tiny", "prompt": "' + b"x" * 70_000 + b'"}', 413, "larger than 65536 bytes"),
        (b"[" * 10_000, 400, "not JSON"),
    ],
    ids=["empty", "torn", "list", "bytes", "surrogate", "surrogate model", "nan", "large", "deep"],
)
def test_a_bad_body(fleet: Pods, body: bytes, status: int, why: str) -> None:
    for path in ("completions", "chat/completions"):
        got, error = refused(fleet, path, body)
        assert got == status
        assert why in error["message"]


def test_a_body_without_an_announced_length_is_bounded_too(fleet: Pods) -> None:
    answer = httpx.post(f"{fleet.http}/v1/completions", content=iter([b"x" * 10_000] * 10), timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_wrong_route_and_a_wrong_method(fleet: Pods) -> None:
    assert httpx.post(f"{fleet.http}/v1/embeddings").json()["error"]["code"] == "unknown_url"
    answer = httpx.get(f"{fleet.http}/v1/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_supported")
