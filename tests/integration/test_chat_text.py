"""What users write reaches the model as text, in the form that its template takes, over both faces."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from transformers import AutoTokenizer

from gateway.prompt import Prompts
from paceline.client import ChatMessage, GatewayClient, GatewayError, Generation
from tests.faces import faces
from tests.scripted_verifier import FINISHED, MODEL, ScriptedVerifier, serving
from tests.tiny import EOS_ID

PARTS = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}</s>{% endfor %}assistant:"
)
REFUSING = "{% if messages | length > 1 %}{{ raise_exception('one message is enough') }}{% endif %}" + PARTS


@dataclass
class Asking:
    """A gateway's faces, and what its verifier was given last."""

    http: str
    client: GatewayClient
    verifier: ScriptedVerifier

    async def over_http(self, *contents: str, **fields: Any) -> httpx.Response:
        if contents:
            fields["messages"] = [{"role": "user", "content": content} for content in contents]
        route = "chat/completions" if "messages" in fields else "completions"
        async with httpx.AsyncClient() as http:
            body = {"model": MODEL, "max_tokens": 1, **fields}
            return await http.post(f"{self.http}/v1/{route}", json=body)

    async def over_grpc(self, *contents: str, text: str = "") -> None:
        chat = [ChatMessage("user", content) for content in contents]
        asked = Generation(chat=chat, max_tokens=1) if chat else Generation(text=text, max_tokens=1)
        async for _ in self.client.generate(asked):
            pass

    def told(self) -> list[int]:
        return list(self.verifier.opened[-1].prompt_ids)


@pytest.fixture
def template() -> str:
    return PARTS


@pytest.fixture
async def ask(tiny_model: Path, tmp_path: Path, template: str) -> AsyncIterator[Asking]:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    verifier = ScriptedVerifier([FINISHED])
    async with (
        serving(verifier) as sessions,
        faces(sessions, Prompts(str(folder))) as served,
        GatewayClient(served.grpc) as client,
    ):
        yield Asking(served.http, client, verifier)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def spelt(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, its special tokens as text."""
    cut = text.replace("</s>", "<|/s>")
    return [
        token for part in cut.split("|") for token in tokenizer(part, add_special_tokens=False)["input_ids"]
    ]


async def test_a_template_of_parts_gets_the_question(ask: Asking, tokenizer: Any) -> None:
    """It was lost in silence: seven tokens for any text. A special token in it is text."""
    question = "the question</s>"
    asked = [*spelt(tokenizer, f"user: {question}"), EOS_ID, *spelt(tokenizer, "assistant:")]
    answer = await ask.over_http(question)
    assert (answer.status_code, answer.json()["usage"]["prompt_tokens"]) == (200, len(asked))
    assert ask.told() == asked
    await ask.over_grpc(question)
    assert ask.told() == asked
    parts = [{"type": "text", "text": "the question"}, {"type": "text", "text": "</s>"}]
    await ask.over_http(messages=[{"role": "user", "content": parts}])
    assert ask.told() == asked


async def test_a_plain_prompts_special_tokens_are_tokens(ask: Asking) -> None:
    await ask.over_http(prompt="hello</s>")
    assert ask.told()[-1] == EOS_ID
    await ask.over_grpc(text="hello</s>")
    assert ask.told()[-1] == EOS_ID
    await ask.over_http(prompt=[5, EOS_ID, 6])
    assert ask.told() == [5, EOS_ID, 6]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (REFUSING, "one message is enough"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ messages[0].nothing.there }}", "has no attribute 'nothing'"),
        ("{{ messages | length }}", "shows no message's text"),
        (PARTS.replace("messages %}", "messages[-1:] %}"), "leaves out the text of messages[0]"),
    ],
)
async def test_what_a_template_does_not_take_is_refused_in_its_words(ask: Asking, why: str) -> None:
    answer = await ask.over_http("the question", "and another")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "messages")
    assert why in error["message"]
    with pytest.raises(GatewayError) as caught:
        await ask.over_grpc("the question", "and another")
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert why in str(caught.value)
    assert not ask.verifier.opened
