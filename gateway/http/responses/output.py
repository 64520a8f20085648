"""A response's output items and its stream's events, from the parts of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

from gateway.parts import CallArguments, CallBegan, Part, Said, Thought
from gateway.reading import call_id

Json = dict[str, Any]
# By type of an item: its id's prefix.
_PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


class Output:
    """Items in the order of the text; the last one is open until another begins or the text ends."""

    def __init__(self, session_id: str) -> None:
        self.items: list[Json] = []
        self._session_id = session_id
        self._open = False

    def take(self, parts: Iterable[Part]) -> Iterator[Json]:
        """The events that tell these parts."""
        for part in parts:
            match part:
                case Said(text):
                    yield from self._within("message")
                    yield from self._add_text("response.output_text.delta", text, logprobs=[])
                case Thought(text):
                    yield from self._within("reasoning")
                    yield from self._add_text("response.reasoning_text.delta", text)
                case CallBegan(index, name):
                    yield from self.close("completed")
                    given = call_id(self._session_id, index)
                    yield self._begin("function_call", call_id=given, name=name, arguments="")
                case CallArguments(_, text):
                    self.items[-1]["arguments"] += text
                    yield self._event("response.function_call_arguments.delta", delta=text)

    def end(self, status: str) -> Iterator[Json]:
        """The events of the text's end. A response without any output has one empty message."""
        if not self.items:
            yield from self._within("message")
        yield from self.close(status)

    def close(self, status: str) -> Iterator[Json]:
        """The events that end the open item, if there is one."""
        if not self._open:
            return
        self._open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **told)
        else:
            yield from self._text_done(item)
        yield self._item_event("response.output_item.done")

    @property
    def reasoning(self) -> str:
        """All reasoning."""
        thoughts = (item["content"] for item in self.items if item["type"] == "reasoning")
        return "".join(part["text"] for content in thoughts for part in content)

    def _within(self, kind: str) -> Iterator[Json]:
        """Events that begin an item of text, unless one of its kind is open."""
        if self._open and self.items[-1]["type"] == kind:
            return
        yield from self.close("completed")
        if kind == "message":
            yield self._begin(kind, role="assistant", content=[])
            part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            yield self._begin(kind, summary=[], content=[])
            part = {"type": "reasoning_text", "text": ""}
        self.items[-1]["content"].append(part)
        yield self._event("response.content_part.added", content_index=0, part=dict(part))

    def _begin(self, kind: str, **fields: Any) -> Json:
        digest = sha256(f"{self._session_id}:{len(self.items)}".encode()).hexdigest()[:32]
        item = {"id": f"{_PREFIXES[kind]}_{digest}", "type": kind, "status": "in_progress", **fields}
        self.items.append(item)
        self._open = True
        return self._item_event("response.output_item.added")

    def _add_text(self, event: str, text: str, **fields: Any) -> Iterator[Json]:
        self.items[-1]["content"][0]["text"] += text
        yield self._event(event, content_index=0, delta=text, **fields)

    def _text_done(self, item: Json) -> Iterator[Json]:
        part = item["content"][0]
        if item["type"] == "message":
            yield self._event("response.output_text.done", content_index=0, text=part["text"], logprobs=[])
        else:
            yield self._event("response.reasoning_text.done", content_index=0, text=part["text"])
        yield self._event("response.content_part.done", content_index=0, part=dict(part))

    def _event(self, kind: str, **fields: Any) -> Json:
        return {
            "type": kind,
            "item_id": self.items[-1]["id"],
            "output_index": len(self.items) - 1,
            **fields,
        }

    def _item_event(self, kind: str) -> Json:
        item = self.items[-1]
        copied = {name: list(value) if isinstance(value, list) else value for name, value in item.items()}
        return {"type": kind, "output_index": len(self.items) - 1, "item": copied}
