"""What is asked in the parity matrix: each feature, greedy and seeded, with each kind of drafts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["red", "green", "blue"]},
    },
    "required": ["name", "size", "kind"],
    "additionalProperties": False,
}

# By name: fields of a completion's body. Each has to change something for some prompt.
FEATURES: Mapping[str, Mapping[str, Any]] = {
    "nothing": {},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "typical_p": {"typical_p": 0.7},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 1.0},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "all penalties, top_p": {
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "top_p": 0.9,
    },
    "logit_bias": {"logit_bias": {"70": 4, "71": -100, "72": 2.5}},
    "bad_words": {"bad_words": list("aeioustnrlcdfghkmpw")},
    "allowed_token_ids": {"allowed_token_ids": list(range(60, 120))},
    "min_tokens": {"min_tokens": 20},
    "stop": {"stop": ["e", "q"]},
    "stop_token_ids": {"stop_token_ids": list(range(64, 96))},
    "ignore_eos": {"ignore_eos": True},
    "logprobs": {"logprobs": 3},
    "echo": {"echo": True, "logprobs": 1},
    "n": {"n": 3},
    "regex": {"structured_outputs": {"regex": "[a-f]{3,12}(-[0-9]{2}){1,3}"}},
    "choice": {"structured_outputs": {"choice": ["positive", "negative", "neither of both"]}},
    "grammar": {"structured_outputs": {"grammar": 'start: "(" (start | /[xyz]{2,6}/) ")"'}},
    "json_object": {"response_format": {"type": "json_object"}, "max_tokens": 80},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True},
        },
        "max_tokens": 120,
    },
}
SAMPLING: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.9, "seed": 11},
}
# A chain is a tree as wide as its one node.
DRAFTS: Mapping[str, Mapping[str, Any]] = {
    "no draft": {"speculation": {"enabled": False}},
    "chain": {"speculation": {"max_nodes": 1}},
    "tree": {"speculation": {"max_nodes": 16}},
}
PROMPTS = ("a b c a b c a b", "the quick brown fox jumps over the lazy dog. the quick brown")


@dataclass(frozen=True, slots=True)
class Case:
    """One request, by what it asks for."""

    feature: str
    sampling: str
    drafts: str
    prompt: str

    @property
    def body(self) -> dict[str, Any]:
        """Of POST /v1/completions, but for the model."""
        asked: dict[str, Any] = {"prompt": self.prompt, "max_tokens": 32, "echo": False}
        for part in (FEATURES[self.feature], SAMPLING[self.sampling], DRAFTS[self.drafts]):
            asked |= part
        return asked

    @property
    def reference(self) -> Case:
        """The same without drafts."""
        return Case(self.feature, self.sampling, "no draft", self.prompt)


def cases() -> Iterator[Case]:
    """All of them, a feature's together."""
    for feature in FEATURES:
        for sampling in SAMPLING:
            for drafts in DRAFTS:
                for prompt in PROMPTS:
                    yield Case(feature, sampling, drafts, prompt)


def outcome(reply: Mapping[str, Any]) -> Any:
    """What must be the same: texts, reasons, log-probabilities and usage."""
    usage = {name: reply["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    choices = [
        {name: choice.get(name) for name in ("index", "text", "finish_reason", "logprobs")}
        for choice in reply["choices"]
    ]
    return {"usage": usage, "choices": choices}
