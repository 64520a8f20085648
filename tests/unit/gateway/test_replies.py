"""Server-sent events as clients take them apart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.choices import Told
from gateway.events import Chunk, Finished, Mark, Started, Untold
from gateway.generation import Form
from gateway.http.choice import Choice
from gateway.http.replies import Reply, sse, stream
from paceline.session import FinishReason, Receipt

# All that Python's and other languages' readers of lines take for the end of one.
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(LINE_ENDS))))
def test_an_event_is_one_line_whatever_its_text(text: str) -> None:
    event = sse({"text": text}).decode()
    (line, *rest) = event.splitlines()
    assert rest == [""]
    assert json.loads(line.removeprefix("data: ")) == {"text": text}


async def test_no_text_is_swallowed_that_comes_before_its_session_has_begun() -> None:
    async def out_of_order() -> AsyncIterator[Told]:
        yield Told(0, Chunk("text", 3, (5,), 0, True))
        yield Told(0, Started("s", 1, 3))
        yield Told(0, Finished(FinishReason.LENGTH, Receipt()))

    reply = Reply([Choice(Form())], "m", ["s"])
    with pytest.raises(ValueError, match="begins with Chunk"):
        [part async for part in stream(out_of_order(), reply, marked=False)]


async def test_chunks_of_several_choices_have_their_index_and_usage_counts_each_prompt_once() -> None:
    async def events() -> AsyncIterator[Told]:
        for choice in (2, 0, 3, 1):
            yield Told(choice, Started(f"s{choice}", choice, 3 + choice // 2))
        for choice in (1, 0, 2, 3, 0):
            yield Told(choice, Chunk(f"text {choice}", 9, (5,), 0, True))
        for choice in (3, 1, 0, 2):
            yield Told(choice, Finished(FinishReason.LENGTH, Receipt()))

    choices = [Choice(Form("text", include_usage=True, index=index)) for index in range(4)]
    reply = Reply(choices, "m", ["s0", "s1", "s2", "s3"], n=2)
    parts = [part async for part in stream(events(), reply, marked=False)]
    bodies = [json.loads(part.removeprefix(b"data: ")) for part in parts[:-1]]
    assert [(body["choices"][0]["index"], body["choices"][0]["text"]) for body in bodies[:5]] == [
        (1, "text 1"),
        (0, "text 0"),
        (2, "text 2"),
        (3, "text 3"),
        (0, "text 0"),
    ]
    assert {body["id"] for body in bodies} == {"cmpl-s0"}
    assert [body["paceline"]["session_id"] for body in bodies[5:9]] == ["s3", "s1", "s0", "s2"]
    assert bodies[-1]["choices"] == []
    assert (bodies[-1]["usage"]["prompt_tokens"], bodies[-1]["usage"]["completion_tokens"]) == (3 + 4, 5)


@pytest.mark.parametrize("had", [0, 1, 2, 4])
async def test_a_resumed_stream_tells_each_id_once(had: int) -> None:
    async def events() -> AsyncIterator[Told]:
        yield Told(0, Started("s", 1, 3, (7, 7, 7)))
        for position, (text, ids) in enumerate([("a", (5,)), ("b", (6,)), ("", (7,)), ("c", (8,))], 3):
            yield Told(0, Chunk(text, position, ids, 0, True))
        yield Told(0, Finished(FinishReason.LENGTH, Receipt()))

    untold = Untold(Mark("s", 3 + had, min(had, 2) if had < 4 else 3)) if had else Untold()
    reply = Reply([Choice(Form(token_ids=True), untold=untold)], "m", ["s"])
    parts = [part async for part in stream(events(), reply, marked=False)]
    choices = [json.loads(part.removeprefix(b"data: "))["choices"][0] for part in parts[:-1]]
    assert [token for choice in choices for token in choice["token_ids"]] == [5, 6, 7, 8][had:]
    assert "".join(choice["text"] for choice in choices) == "abc"[min(had, 2) if had < 4 else 3 :]
    assert ("prompt_token_ids" in choices[0]) == (not had)
