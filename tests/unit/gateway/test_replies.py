"""Server-sent events as clients take them apart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Chunk, Event, Finished, Started, Untold
from gateway.generation import Form
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
    async def out_of_order() -> AsyncIterator[Event]:
        yield Chunk("text", 3, (5,), 0, True)
        yield Started("s", 1, 3)
        yield Finished(FinishReason.LENGTH, Receipt())

    reply = Reply(Form(), "m")
    with pytest.raises(ValueError, match="begins with Chunk"):
        [part async for part in stream(out_of_order(), reply, Untold(), marked=False)]
