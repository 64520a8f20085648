"""Bodies at the door: refused by name, never ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from gateway.choices import Told
from gateway.errors import RequestError
from gateway.events import Chunk, Finished, Started
from gateway.generation import Form
from gateway.http.choice import Choice
from gateway.http.neutral import NOT_YET
from gateway.http.replies import Reply
from gateway.http.schema import ChatRequest, CompletionRequest, parse
from gateway.request import MAX_MESSAGES
from paceline.logprobs import NO_LOGPROBS, LogprobsWanted
from paceline.session import FinishReason, Receipt

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}

# A value of each that asks for something, and those that ask for nothing.
ASKS: dict[str, tuple[Any, list[Any]]] = {
    "audio": ({"voice": "x"}, []),
    "function_call": ("auto", ["none"]),
    "functions": ([{"name": "f"}], [[]]),
    "modalities": (["audio"], [["text"]]),
    "service_tier": ("flex", ["auto", "default"]),
    "suffix": ("x", [""]),
    "verbosity": ("low", []),
    "web_search_options": ({}, []),
}


def chat(**changes: Any) -> ChatRequest:
    return parse(json.dumps({**CHAT, **changes}).encode(), ChatRequest)


def text(**changes: Any) -> CompletionRequest:
    return parse(json.dumps({**TEXT, **changes}).encode(), CompletionRequest)


# What clients and bench tools of other servers send.
OTHERS: dict[str, tuple[Any, list[Any]]] = {
    "chat_template": ("x", []),
    "detokenize": (False, [True]),
    "documents": ([{}], [[]]),
    "early_stopping": (True, [False]),
    "length_penalty": (0.5, [1, 1.0]),
    "logits_processors": (["x"], [[]]),
    "repeat_penalty": (1.1, [1, 1.0]),
    "request_id": (5, ["abc"]),
    "use_beam_search": (True, [False]),
    "custom_labels": ({"a": "b"}, [{}]),
    "custom_logit_processor": ("x", ["", []]),
    "input_ids": ([1], []),
    "logprob_token_ids": ([1], []),
    "media_io_kwargs": ({"a": {}}, [{}]),
    "reasoning": ({"effort": "high"}, [{}]),
    "repetition_detection": ({}, []),
    "return_hidden_states": ("last", [False]),
    "return_prompt_text": (True, [False]),
    "rid": (["a"], ["a"]),
    "routed_dp_rank": (0, []),
    "separate_reasoning": ("x", [True, False]),
    "session_id": (5, ["a"]),
    "stop_regex": ("a+", ["", []]),
    "stream_interval": (2, [1]),
    "stream_reasoning": (0, [True, False]),
    "thinking_token_budget": (5, [-1]),
    "watermarking": (True, [False]),
}
ASKS.update(OTHERS)


def test_the_table_of_this_test_knows_only_what_is_not_served() -> None:
    assert set(ASKS) <= set(NOT_YET)


@pytest.mark.parametrize("name", NOT_YET)
def test_null_asks_for_nothing(name: str) -> None:
    assert chat(**{name: None}) == chat()


@pytest.mark.parametrize("name", ASKS)
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    for ask in (chat, text):
        with pytest.raises(RequestError, match=f"^{name} is not supported yet$") as caught:
            ask(**{name: ASKS[name][0]})
        assert caught.value.param == name
        assert caught.value.kind.code == "unsupported_parameter"
        assert caught.value.kind.status == 400


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in ASKS for value in [*ASKS[name][1], None]]
)
def test_a_value_that_asks_for_nothing_is_taken(name: str, value: Any) -> None:
    assert chat(**{name: value}) == chat()
    assert text(**{name: value}) == text()


# Of one kind of request only; the other one takes what asks for nothing.
OF_ONE: list[tuple[Any, str, Any, Any]] = [
    (text, "add_generation_prompt", False, True),
    (text, "chat_template_kwargs", {"a": 1}, {}),
    (text, "continue_final_message", True, False),
    (text, "include_reasoning", False, True),
    (text, "reasoning_effort", "high", "none"),
    (text, "tool_choice", "required", "auto"),
    (text, "tools", [{"type": "function", "function": {"name": "f"}}], []),
    (chat, "best_of", 2, 1),
    (chat, "echo", True, False),
]


@pytest.mark.parametrize(("ask", "name", "asks", "neutral"), OF_ONE)
def test_what_only_the_other_kind_of_request_takes_is_refused(
    ask: Any, name: str, asks: Any, neutral: Any
) -> None:
    other = text if ask is chat else chat
    other(**{name: asks})
    assert ask(**{name: neutral}) == ask(**{name: None}) == ask()
    with pytest.raises(RequestError, match=f"^{name} is not supported yet$") as caught:
        ask(**{name: asks})
    assert (caught.value.param, caught.value.kind.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n", [None, 1, 2.0, 128]),
        ("include_stop_str_in_output", [None, True, False]),
        ("skip_special_tokens", [None, True, False]),
        ("spaces_between_special_tokens", [None, True, False]),
        ("add_special_tokens", [None, True, False]),
        ("return_token_ids", [None, True, False]),
        ("truncate_prompt_tokens", [None, -1, 1, 5.0]),
        ("truncation_side", [None, "left", "right"]),
        ("priority", [None, 0, -(2**31), 2**31]),
        ("cache_salt", [None, "x", "x" * 256]),
        ("metadata", [None, {}, {"k" * 64: "v" * 512}, {str(each): "" for each in range(16)}]),
        ("store", [None, True, False]),
        ("prompt_logprobs", [None, 0, 20]),
    ],
)
def test_what_both_kinds_of_request_take(name: str, values: list[Any]) -> None:
    for ask in (chat, text):
        for value in values:
            assert getattr(ask(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"), [("n", True), ("logprobs", True), ("echo", 0), ("priority", False)]
)
def test_a_look_alike_of_another_type_is_not_neutral(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name):
        text(**{name: value})


@pytest.mark.parametrize("name", ["tempurature", "max_token", "__proto__", ""])
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    with pytest.raises(RequestError, match=f"unrecognized request argument: {name}") as caught:
        chat(**{name: 1})
    assert caught.value.kind.code == "unknown_parameter"
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("presence_penalty", 2.5),
        ("frequency_penalty", "much"),
        ("repetition_penalty", 0),
        ("typical_p", 0),
        ("typical_p", 1.5),
        ("logit_bias", [5]),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"5": True}),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("allowed_token_ids", [-1]),
        ("bad_words", [""]),
        ("bad_words", ["x" * 65]),
        ("bad_words", ["x"] * 129),
        ("model", 5),
        ("model", ""),
        ("model", None),
        ("max_tokens", "5"),
        ("max_tokens", 5.5),
        ("min_tokens", -1),
        ("ignore_eos", 1),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 5),
        ("max_tokens", True),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 2**40),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", 101),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", -0.1),
        ("min_p", 2),
        ("seed", -2),
        ("seed", 2**63),
        ("seed", 1.5),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 5),
        ("stop", "x" * 257),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stream", "true"),
        ("stream", 1),
        ("stream_options", True),
        ("stream_options", {"include_usage": 1}),
        ("stream_options", {"include_obfuscation": True}),
        ("user", 5),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
        ("truncation_side", "middle"),
        ("priority", 2**31 + 1),
        ("priority", "high"),
        ("cache_salt", ""),
        ("cache_salt", "x" * 257),
        ("metadata", {"k" * 65: ""}),
        ("metadata", {"k": "v" * 513}),
        ("metadata", {"k": 5}),
        ("metadata", {str(each): "" for each in range(17)}),
        ("store", "yes"),
        ("speculation", True),
        ("speculation", {"enabled": "yes"}),
        ("speculation", {"drafters": 2}),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    for ask in (chat, text):
        with pytest.raises(RequestError) as caught:
            ask(**{name: value})
        assert (caught.value.param or "").split(".")[0].split("[")[0] == name
        assert name in caught.value.message
        assert caught.value.kind.status == 400


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ("hi", "messages"),
        ([], "messages"),
        (["hi"], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": "wizard", "content": "hi"}], "messages[0].role"),
        ([{"role": "tool", "content": "hi"}], "messages[0].tool_call_id"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": "hi", "tool_calls": [{"id": "x"}]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "content": "hi", "refusal": "no"}], "messages[0].refusal"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content"),
    ],
)
def test_a_bad_message_is_refused_with_its_place(messages: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(messages=messages)
    assert (caught.value.param or "").startswith(param)


@pytest.mark.parametrize(
    "prompt", [None, 5, [], ["a", 5], [1, "a"], [1.5], [-1], [[1, 2], [-3]], [[]], [True], {}]
)
def test_a_bad_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(RequestError) as caught:
        text(prompt=prompt)
    assert (caught.value.param or "").startswith("prompt")


@pytest.mark.parametrize(
    ("changes", "message", "code"),
    [
        ({"prompt": []}, "prompt must have at least 1 items", "empty_array"),
        ({"prompt": [1, "a"]}, "prompt[1] must be an integer, not a string", "invalid_type"),
        ({"prompt": 5}, "prompt must be a string or an array, not an integer", "invalid_type"),
        (
            {"prompt": ["a", 5]},
            "prompt[1] must be a string or an array, not an integer",
            "invalid_type",
        ),
        ({"prompt": [[1], [2, -3]]}, "prompt[1][1] must be at least 0", "integer_below_min_value"),
        ({"prompt": ["a"] * 129}, "prompt must have at most 128 items", "array_above_max_length"),
        ({"n": 0}, "n must be at least 1", "integer_below_min_value"),
        ({"n": 129}, "n must be at most 128", "integer_above_max_value"),
        ({"stop": ["a"] * 5}, "stop must have at most 4 items", "array_above_max_length"),
        ({"stop": ["a", ""]}, "stop[1] must have at least 1 characters", "empty_string"),
        ({"stop": 5}, "stop must be a string or an array, not an integer", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens must be at least 1", "integer_below_min_value"),
        ({"max_tokens": "5"}, "max_tokens must be an integer, not a string", "invalid_type"),
        ({"max_tokens": True}, "max_tokens must be an integer, not a boolean", "invalid_type"),
        ({"temperature": 100.5}, "temperature must be at most 100", "decimal_above_max_value"),
        ({"seed": 1.5}, "seed must be an integer, not a decimal", "invalid_type"),
        ({"model": None}, "model must be a string, not null", "invalid_type"),
        ({"stream_options": True}, "stream_options must be an object, not a boolean", "invalid_type"),
        (
            {"stream_options": {"x": 1}},
            "unrecognized request argument: stream_options.x",
            "unknown_parameter",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(changes: dict[str, Any], message: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        text(**changes)
    assert caught.value.message == message
    assert caught.value.kind.code == code


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"seed": -1}, {}),
        ({"seed": -1.0}, {}),
        ({"seed": 7.0}, {"seed": 7}),
        ({"top_k": -1}, {}),
        ({"n": 1.0}, {"n": 1}),
        ({"max_tokens": 5.0}, {"max_tokens": 5}),
        ({"min_tokens": 5.0}, {"min_tokens": 5}),
        ({"stop": ""}, {}),
        ({"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "typical_p": 1}, {}),
        ({"logit_bias": {}, "allowed_token_ids": [], "bad_words": []}, {}),
    ],
)
def test_values_mean_what_they_mean_to_other_servers(changes: dict[str, Any], same: dict[str, Any]) -> None:
    assert text(**changes).sampling(5) == text(**same).sampling(5)
    assert text(**changes).n in (None, 1)


def test_a_bias_is_read_by_ids() -> None:
    asked = text(logit_bias={"50": 2, "7": -100.0}, allowed_token_ids=[7, 50], bad_words=["a", "b c"])
    sampling = asked.sampling(5)
    assert sampling.logit_bias == ((7, -100.0), (50, 2.0))
    assert sampling.allowed_token_ids == frozenset({7, 50})
    assert sampling.bad_words == ("a", "b c")


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert text(prompt=["a"]).prompt == "a"
    assert text(prompt=[[1, 2]]).prompt == [1, 2]


NEUTRAL: st.SearchStrategy[Any] = st.sampled_from([None, "", [], {}])
NAMES = st.sampled_from(
    ["refusal", "annotations", "audio", "tool_calls", "function_call", "name", "reasoning_content", "x"]
)


@given(st.dictionaries(NAMES.filter(lambda name: name != "name"), NEUTRAL))
def test_null_and_empty_fields_of_a_message_ask_for_nothing(extra: dict[str, Any]) -> None:
    said = {"role": "assistant", "content": "hi"}
    assert chat(messages=[{**said, **extra, "name": None}]).messages == chat(messages=[said]).messages


@given(st.text())
def test_a_reply_is_taken_back_as_the_sdk_dumps_it(answer: str) -> None:
    reply = Reply([Choice(Form("chat"))], "m", ["s"])
    for event in (Started("s", 1, 3), Chunk(answer, 3, (), 0, True), Finished(FinishReason.STOP, Receipt())):
        reply.take(Told(0, event))
    whole = reply.whole()
    said = ChatCompletion.model_validate(whole).choices[0].message
    for message in (
        whole["choices"][0]["message"],
        said.model_dump(),
        said.model_dump(exclude_unset=True),
        said.model_dump(mode="json", exclude_none=True),
    ):
        assert chat(messages=[message]).messages[0].text == answer


def test_a_message_list_stops_at_its_first_fault() -> None:
    with pytest.raises(RequestError) as caught:
        chat(messages=[{"role": "user", "content": "hi"}, *[5] * (MAX_MESSAGES - 1)])
    assert caught.value.param == "messages[1]"


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(name: str) -> None:
    body = {key: value for key, value in CHAT.items() if key != name}
    with pytest.raises(RequestError) as caught:
        parse(json.dumps(body).encode(), ChatRequest)
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'"hi"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"temperature": NaN}', "not JSON"),
        (b'{"temperature": Infinity}', "not JSON"),
        (b"[" * 100_000, "more than 16384 lists and objects"),
        (b"[" * 10_000, "not JSON"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        parse(body, ChatRequest)
    assert caught.value.kind.status == 400


@pytest.mark.parametrize("escape", ["\\ud800", "\\udfff", "a\\ud83d"])
def test_half_a_surrogate_pair_is_refused(escape: str) -> None:
    for body, kind in (
        (f'{{"model":"m","messages":[{{"role":"user","content":"{escape}"}}]}}', ChatRequest),
        (f'{{"model":"m","prompt":"{escape}"}}', CompletionRequest),
        (f'{{"model":"m","prompt":"x","stop":"{escape}"}}', CompletionRequest),
    ):
        with pytest.raises(RequestError) as caught:
            parse(body.encode(), kind)
        caught.value.message.encode()


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        parse(b'{"model":"m","prompt":"x","temperature":1e999}', CompletionRequest)
    assert caught.value.param == "temperature"


def test_the_body_means_what_it_says() -> None:
    asked = chat(
        temperature=1,
        stop="x",
        stream=True,
        stream_options={"include_usage": True},
        speculation={"enabled": False},
    )
    sampling = asked.sampling(5)
    assert (sampling.temperature, sampling.stop, asked.stream) == (1.0, ("x",), True)
    assert asked.speculation is not None
    assert not asked.speculation.enabled
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].text == "ab"
    assert text(prompt=[1, 2], stop=["a", "b"]).sampling(5).stop == ("a", "b")


def test_fields_that_nobody_knows_are_ignored_by_name_where_that_is_wanted() -> None:
    body = {
        **CHAT,
        "zebra": 1,
        "n": 2,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "messages": [
            {"role": "user", "content": "hi", "mood": "good"},
            {"role": "user", "content": [{"type": "text", "text": "and", "cache_control": {}}]},
            {"role": "user", "content": "so", "mood": "bad"},
        ],
        "logit_bias": None,
        "unknown": None,
    }
    asked = parse(json.dumps(body).encode(), ChatRequest, ignoring=True)
    assert sorted(asked.ignored) == [
        "messages[0].mood",
        "messages[1].content[0].cache_control",
        "messages[2].mood",
        "stream_options.include_obfuscation",
        "zebra",
    ]
    assert ([message.text for message in asked.messages], asked.n) == (["hi", "and", "so"], 2)
    with pytest.raises(RequestError, match="zebra"):
        parse(json.dumps(body).encode(), ChatRequest)


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"audio": {"voice": "x"}}, {"messages": []}])
def test_ignoring_what_is_unknown_lets_nothing_else_pass(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        parse(json.dumps({**CHAT, "zebra": 1, **wrong}).encode(), ChatRequest, ignoring=True)
    assert caught.value.param == next(iter(wrong))


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        ({"max_nodes": 0}, "speculation.max_nodes"),
        ({"max_depth": 5000}, "speculation.max_depth"),
        ({"method": "Not a name"}, "speculation.method"),
    ],
)
def test_limits_of_drafts_are_bounded(limits: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        text(speculation=limits)
    assert caught.value.param == param


def test_log_probabilities_that_are_asked_for() -> None:
    assert chat().scores == chat(logprobs=False, top_logprobs=0).scores == NO_LOGPROBS
    assert chat(logprobs=True).scores == LogprobsWanted(top=0)
    assert chat(logprobs=True, top_logprobs=5, prompt_logprobs=2).scores == LogprobsWanted(5, 2)
    assert text(logprobs=False).scores == text(echo=True).scores == NO_LOGPROBS
    assert text(logprobs=3).scores == LogprobsWanted(top=3)
    assert text(logprobs=3, echo=True).scores == LogprobsWanted(3, 3)
    for ask, name in ((chat, "top_logprobs"), (text, "logprobs"), (text, "prompt_logprobs")):
        with pytest.raises(RequestError, match=f"{name} must be at most 20"):
            ask(**{name: 21})


def test_a_prediction_is_text_or_parts_of_it() -> None:
    told = {"type": "content", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    for ask in (chat, text):
        for content in (told, {"type": "content", "content": "ab"}):
            prediction = ask(prediction=content).prediction
            assert prediction is not None
            assert prediction.text == "ab"
        with pytest.raises(RequestError, match=r"^missing required parameter: prediction\.content"):
            ask(prediction={"type": "content"})
