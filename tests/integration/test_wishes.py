"""How prompts are read and replies told, as requests of a real fleet ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from paceline.client import Chunk, Finished, Generation, SyncGatewayClient
from paceline.session import SpeculationLimits
from tests.pods import MODEL, Pods

ASKED: dict[str, Any] = {"model": MODEL, "prompt": "the quick brown fox", "max_tokens": 40, "temperature": 0}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the quick"}],
    "max_tokens": 12,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def client(fleet: Pods) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.http, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def told(client: httpx.Client, asked: dict[str, Any], route: str = "completions") -> dict[str, Any]:
    answer = client.post(f"/v1/{route}", json=asked)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def events(client: httpx.Client, asked: dict[str, Any], route: str = "completions") -> list[dict[str, Any]]:
    answer = client.post(f"/v1/{route}", json={**asked, "stream": True})
    parts = [part.removeprefix("data: ") for part in answer.text.split("\n\n") if part]
    assert parts[-1] == "[DONE]"
    return [httpx.Response(200, text=part).json() for part in parts[:-1]]


def text_of(body: dict[str, Any]) -> str:
    return str(body["choices"][0]["text"])


@pytest.mark.parametrize("as_ids", [False, True])
def test_an_echo_is_the_prompt_before_the_text(client: httpx.Client, tokenizer: Any, as_ids: bool) -> None:
    prompt = tokenizer(ASKED["prompt"])["input_ids"] if as_ids else ASKED["prompt"]
    plain = text_of(told(client, {**ASKED, "prompt": prompt}))
    asked = {**ASKED, "prompt": prompt, "echo": True}
    assert text_of(told(client, asked)) == ASKED["prompt"] + plain
    streamed = events(client, asked)
    assert "".join(map(text_of, streamed)) == ASKED["prompt"] + plain
    session = streamed[0]["id"].removeprefix("cmpl-")
    again = client.get(f"/v1/sessions/{session}/events").text
    assert ASKED["prompt"] in again


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_part_of_the_text_where_that_is_wanted(client: httpx.Client, stream: bool) -> None:
    full = text_of(told(client, ASKED))
    stop = full[10:13]
    asked = {**ASKED, "stop": stop, "include_stop_str_in_output": True}
    bodies = events(client, asked) if stream else [told(client, asked)]
    assert "".join(map(text_of, bodies)) == full[: full.index(stop) + 3]
    assert bodies[-1]["choices"][0]["stop_reason"] == stop


def test_a_stop_ids_text_is_left_out_unless_it_is_wanted(client: httpx.Client, tokenizer: Any) -> None:
    ids = told(client, {**ASKED, "return_token_ids": True})["choices"][0]["token_ids"]
    stop = ids[5]
    before = ids[: ids.index(stop)]
    asked = {**ASKED, "stop_token_ids": [stop], "return_token_ids": True}
    choice = told(client, asked)["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == (tokenizer.decode(before), stop)
    assert choice["token_ids"] == [*before, stop]
    whole = told(client, {**asked, "include_stop_str_in_output": True})
    assert text_of(whole) == tokenizer.decode([*before, stop])


def test_ids_are_told_with_the_text(client: httpx.Client, tokenizer: Any) -> None:
    asked = {**ASKED, "return_token_ids": True}
    choice = told(client, asked)["choices"][0]
    assert choice["prompt_token_ids"] == tokenizer(ASKED["prompt"])["input_ids"]
    assert tokenizer.decode(choice["token_ids"], skip_special_tokens=True) == choice["text"]
    streamed = [body["choices"][0] for body in events(client, asked)]
    assert streamed[0]["prompt_token_ids"] == choice["prompt_token_ids"]
    assert [token for each in streamed for token in each["token_ids"]] == choice["token_ids"]
    chat = told(client, {**CHAT, "return_token_ids": True}, "chat/completions")
    assert len(chat["prompt_token_ids"]) == chat["usage"]["prompt_tokens"]
    assert len(chat["choices"][0]["token_ids"]) == chat["usage"]["completion_tokens"]


def test_special_tokens_have_text_where_that_is_wanted(client: httpx.Client, tokenizer: Any) -> None:
    few = {"allowed_token_ids": [0, 1, 2, 60, 61, 62], "temperature": 2, "seed": 1}
    asked = {**ASKED, **few, "return_token_ids": True, "ignore_eos": True, "max_tokens": 200}
    hidden = told(client, asked)["choices"][0]
    assert set(hidden["token_ids"]) & {0, 1, 2}
    shown = told(client, {**asked, "skip_special_tokens": False})["choices"][0]
    assert shown["token_ids"] == hidden["token_ids"]
    assert hidden["text"] == tokenizer.decode(hidden["token_ids"], skip_special_tokens=True)
    assert shown["text"] == tokenizer.decode(hidden["token_ids"], skip_special_tokens=False)
    assert shown["text"] != hidden["text"]


def test_a_prompt_is_cut_to_its_last_tokens(client: httpx.Client, tokenizer: Any) -> None:
    ids = tokenizer("one two three four five six seven")["input_ids"]
    short = told(client, {**ASKED, "prompt": ids[-4:]})
    cut = told(client, {**ASKED, "prompt": ids, "truncate_prompt_tokens": 4})
    assert (text_of(cut), cut["usage"]["prompt_tokens"]) == (text_of(short), 4)
    long = told(client, {**ASKED, "prompt": "word " * 9000, "truncate_prompt_tokens": -1})
    assert long["usage"]["total_tokens"] <= 16384


def test_a_chat_goes_on_with_its_last_message(client: httpx.Client) -> None:
    going_on = {**CHAT, "add_generation_prompt": False, "continue_final_message": True}
    chat = told(client, going_on, "chat/completions")
    text = told(client, {**ASKED, "prompt": "user: hello\nassistant: the quick", "max_tokens": 12})
    assert chat["choices"][0]["message"]["content"] == text_of(text)
    assert chat["usage"]["prompt_tokens"] == text["usage"]["prompt_tokens"]
    refused = client.post("/v1/chat/completions", json={**CHAT, "continue_final_message": True})
    assert refused.json()["error"]["param"] == "continue_final_message"


def test_a_template_gets_its_variables_and_may_not_get_others(client: httpx.Client) -> None:
    plain = told(client, CHAT, "chat/completions")
    same = told(client, {**CHAT, "chat_template_kwargs": {"enable_thinking": False}}, "chat/completions")
    assert same["choices"] == plain["choices"]
    asked = {**CHAT, "chat_template_kwargs": {"chat_template": "x"}}
    refused = client.post("/v1/chat/completions", json=asked)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "chat_template_kwargs.chat_template"


def test_fields_that_change_nothing_are_taken(client: httpx.Client) -> None:
    plain = told(client, CHAT, "chat/completions")
    more = {
        "priority": -7,
        "cache_salt": "mine",
        "metadata": {"run": "5"},
        "store": True,
        "user": "me",
        "spaces_between_special_tokens": False,
        "truncation_side": "left",
    }
    same = told(client, {**CHAT, **more}, "chat/completions")
    assert same["choices"] == plain["choices"]
    assert same["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_a_reply_is_taken_back_as_it_came(client: httpx.Client) -> None:
    message = told(client, CHAT, "chat/completions")["choices"][0]["message"]
    for said in (message, {**message, "refusal": None, "tool_calls": None}, {**message, "content": ""}):
        asked = {**CHAT, "messages": [CHAT["messages"][0], said, {"role": "user", "content": "and?"}]}
        told(client, asked, "chat/completions")


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize(
    "limits",
    [
        {"enabled": False},
        {"max_nodes": 3},
        {"max_depth": 1},
        {"max_nodes": 2, "max_depth": 2, "method": "text"},
        {"method": "nobody"},
    ],
)
def test_what_drafts_may_do_never_changes_the_text(
    client: httpx.Client, temperature: float, limits: dict[str, Any]
) -> None:
    asked = {**ASKED, "prompt": "a b a b a b a b", "max_tokens": 200, "temperature": temperature, "seed": 3}
    free = told(client, asked)
    bound = told(client, {**asked, "speculation": limits})
    assert bound["choices"] == free["choices"]
    receipt = bound["paceline"]
    steps, drafted = receipt["steps"], receipt["drafted_tokens"]
    if not limits.get("enabled", True) or limits.get("method") == "nobody":
        assert drafted == 0
    if most := limits.get("max_nodes"):
        assert drafted <= most * steps
    if deepest := limits.get("max_depth"):
        assert len(receipt["depths"]) <= deepest
    if "method" in limits:
        assert set(receipt["sources"]) <= {limits["method"]}


def test_a_receipt_says_what_a_text_cost(client: httpx.Client) -> None:
    body = told(client, {**ASKED, "max_tokens": 400})
    receipt, metrics = body["paceline"], body["metrics"]["speculative_decoding"]
    assert sum(each["drafted_tokens"] for each in receipt["depths"]) == receipt["drafted_tokens"] > 0
    assert sum(each["accepted_tokens"] for each in receipt["depths"]) == receipt["accepted_tokens"] > 0
    assert receipt["draft_bytes"] > receipt["drafted_tokens"]
    seconds = receipt["seconds"]
    assert seconds["prefill"] > 0
    assert seconds["decode"] > 0
    assert seconds["queued"] >= 0
    assert 0 <= seconds["waited_for_drafts"] < seconds["prefill"] + seconds["decode"]
    assert metrics["num_draft_tokens"] == receipt["drafted_tokens"]
    assert metrics["num_accepted_draft_tokens"] == receipt["accepted_tokens"]
    assert sum(metrics["acceptance_histogram"]) == metrics["num_spec_steps"] <= receipt["steps"]
    last = events(client, {**ASKED, "stream_options": {"include_usage": True}})[-1]
    assert last["metrics"]["speculative_decoding"]["num_spec_steps"] >= 0


def test_the_same_is_asked_over_grpc(fleet: Pods, client: httpx.Client) -> None:
    full = text_of(told(client, ASKED))
    stop = full[10:13]
    wanted = Generation(
        text="aside " * 50 + ASKED["prompt"],
        max_tokens=40,
        temperature=0.0,
        stop=[stop],
        include_stop=True,
        truncate_prompt_tokens=told(client, ASKED)["usage"]["prompt_tokens"],
        priority=-3,
        cache_salt="mine",
        limits=SpeculationLimits(max_nodes=2, max_depth=1),
    )
    with SyncGatewayClient(fleet.grpc) as caller:
        events = list(caller.generate(wanted))
    asked = {**ASKED, "prompt": wanted.text, "stop": stop, "include_stop_str_in_output": True}
    same = told(client, {**asked, "truncate_prompt_tokens": wanted.truncate_prompt_tokens})
    assert "".join(event.text for event in events if isinstance(event, Chunk)) == text_of(same)
    end = events[-1]
    assert isinstance(end, Finished)
    assert len(end.receipt.drafts.by_depth) <= 1
    assert end.receipt.decode_seconds > 0
