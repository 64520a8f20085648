"""Penalties, biases and words through a real fleet: the same over both faces, with drafts and without."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from paceline.client import Chunk, Generation, SyncGatewayClient
from tests.pods import MODEL, Pods

# Its model repeats itself, so that drafts from the text are right.
PROMPT = "the quick brown fox jumps over the quick brown fox"
TOKENS = 48
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "presence_penalty": {"presence_penalty": 2.0},
    "frequency_penalty": {"frequency_penalty": 1.5},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "logit_bias": {"logit_bias": {"40": -100, "300": 4.5, "301": 4}},
    "allowed_token_ids": {"allowed_token_ids": list(range(30, 90))},
    "typical_p": {"typical_p": 0.5, "temperature": 0.8},
    "all": {
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.125,
        "logit_bias": {"40": 2},
        "bad_words": ["fox", "lazy dog"],
        "allowed_token_ids": list(range(3, 500, 2)),
        "typical_p": 0.9,
        "top_p": 0.9,
        "temperature": 0.7,
    },
}


def _over_http(fleet: Pods, asked: dict[str, Any], *, drafts: bool) -> str:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "seed": 5, **asked}
    answer = httpx.post(
        f"{fleet.http}/v1/completions",
        json={**body, "speculation": {"enabled": drafts}, "ignore_eos": True},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def _over_grpc(fleet: Pods, asked: dict[str, Any]) -> tuple[str, list[int]]:
    given = dict(asked)
    if "logit_bias" in given:
        given["logit_bias"] = tuple((int(token), bias) for token, bias in given["logit_bias"].items())
    if "allowed_token_ids" in given:
        given["allowed_token_ids"] = frozenset(given["allowed_token_ids"])
    wanted = {"text": PROMPT, "max_tokens": TOKENS, "temperature": 0.0, "seed": 5, "ignore_eos": True}
    with SyncGatewayClient(fleet.grpc) as client:
        chunks = [
            event for event in client.generate(Generation(**{**wanted, **given})) if isinstance(event, Chunk)
        ]
    text = "".join(chunk.text for chunk in chunks)
    return text, [token for chunk in chunks for token in chunk.token_ids]


@pytest.fixture(scope="module")
def plain(fleet: Pods) -> tuple[str, list[int]]:
    return _over_grpc(fleet, {})


@pytest.mark.parametrize("name", ASKED)
def test_the_text_is_the_same_over_both_faces_with_drafts_and_without(
    fleet: Pods, plain: tuple[str, list[int]], name: str
) -> None:
    asked = ASKED[name]
    text = _over_http(fleet, asked, drafts=False)
    assert (text == plain[0]) == (name == "nothing")
    assert _over_http(fleet, asked, drafts=True) == text
    assert _over_grpc(fleet, asked)[0] == text


def test_parameters_do_what_they_say(fleet: Pods, plain: tuple[str, list[int]]) -> None:
    said = {name: _over_grpc(fleet, asked)[1] for name, asked in ASKED.items()}
    assert set(said["allowed_token_ids"]) <= set(range(30, 90))
    assert 40 not in said["logit_bias"]
    assert len({*said["presence_penalty"]}) >= len({*plain[1]})
    assert max(Counter(said["frequency_penalty"]).values()) <= max(Counter(plain[1]).values())


def test_a_bad_word_does_not_occur(fleet: Pods, plain: tuple[str, list[int]], tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    words = [str(tokenizer.decode([token])) for token in plain[1]]
    # One that is a token by itself, whatever stands before it.
    word = next(word for word in words if word.strip().isalpha() and len(tokenizer(word)["input_ids"]) == 1)
    asked = {"bad_words": [word]}
    text, ids = _over_grpc(fleet, asked)
    assert text != plain[0]
    for text_of_word in (word.lstrip(), " " + word.lstrip()):
        found = tokenizer(text_of_word)["input_ids"]
        assert all(ids[at : at + len(found)] != found for at in range(len(ids)))
    assert _over_http(fleet, asked, drafts=True) == _over_http(fleet, asked, drafts=False) == text


def test_a_request_that_leaves_no_token_is_told_so(fleet: Pods) -> None:
    answer = httpx.post(
        f"{fleet.http}/v1/completions",
        json={"model": MODEL, "prompt": PROMPT, "allowed_token_ids": [2], "min_tokens": 3, "max_tokens": 5},
        timeout=60,
    )
    assert answer.status_code == 400
    assert "leaves no token to draw" in answer.json()["error"]["message"]
    assert _over_http(fleet, {}, drafts=True)
