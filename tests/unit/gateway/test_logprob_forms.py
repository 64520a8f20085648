"""Log-probabilities as OpenAI's clients and vLLM's read them."""

from __future__ import annotations

from openai.types.chat.chat_completion import ChoiceLogprobs
from openai.types.completion_choice import Logprobs

from gateway.detokenize import TokenTexts
from gateway.http.logprobs import CompletionLogprobs, of_chat, of_prompt
from gateway.token_bytes import TokenBytes
from paceline.logprobs import TokenLogprobs
from tests.unit.gateway.test_token_bytes import MADE

TOKENIZER = MADE["byte_level"]
TOKENS = TokenBytes(TOKENIZER, TokenTexts.of(TOKENIZER))
A, B, E = (TOKENIZER.convert_tokens_to_ids(each) for each in ("a", "b", "Ã©"))
LIKELIEST = TokenLogprobs(-0.25, 1, (A, B), (-0.25, -2.0))
UNLIKELY = TokenLogprobs(-7.5, 9, (A, B), (-0.25, -2.0))


def test_of_a_chat() -> None:
    told = ChoiceLogprobs.model_validate(of_chat([(A, LIKELIEST), (E, UNLIKELY)], TOKENS))
    assert told.content is not None
    first, second = told.content
    assert (first.token, first.logprob, first.bytes) == ("a", -0.25, [97])
    assert [(each.token, each.logprob) for each in first.top_logprobs] == [("a", -0.25), ("b", -2.0)]
    assert (second.token, second.logprob, second.bytes) == ("é", -7.5, [0xC3, 0xA9])
    assert len(second.top_logprobs) == 2


def test_of_a_completion_in_pieces() -> None:
    made = CompletionLogprobs(TOKENS)
    # As the official client reads it: its types know no null.
    first = Logprobs.model_construct(**made.of([(B, UNLIKELY)], unscored=[E]))
    second = Logprobs.model_validate(made.of([(A, LIKELIEST)]))
    assert (first.tokens, first.token_logprobs, first.text_offset) == (["é", "b"], [None, -7.5], [0, 1])
    # The token itself is told even where it is not among the likeliest; B is, as such it is told once.
    assert first.top_logprobs == [None, {"a": -0.25, "b": -2.0}]
    assert (second.text_offset, second.top_logprobs) == ([2], [{"a": -0.25, "b": -2.0}])
    assert made.of([(E, UNLIKELY)])["top_logprobs"] == [{"a": -0.25, "b": -2.0, "é": -7.5}]


def test_of_a_prompt() -> None:
    assert of_prompt([A, E], [UNLIKELY], TOKENS) == [
        None,
        {
            str(A): {"logprob": -0.25, "rank": 1, "decoded_token": "a"},
            str(B): {"logprob": -2.0, "rank": 2, "decoded_token": "b"},
            str(E): {"logprob": -7.5, "rank": 9, "decoded_token": "é"},
        },
    ]
