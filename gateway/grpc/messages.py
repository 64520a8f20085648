"""A session's events as gRPC messages."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.events import Chunk, Event, Finished, Started
from gateway.parts import CallArguments, CallBegan, Part, Said, Thought
from gateway.reading import call_id
from paceline.net import wire
from paceline.v1 import gateway_pb2 as pb
from paceline.v1 import verifier_pb2


class Messages:
    """Makes the messages of one stream."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._session_id = ""

    def of(self, event: Event) -> pb.GenerateResponse:
        """The message of an event; of chunks what `Untold` returns."""
        match event:
            case Started():
                self._session_id = event.session_id
                return pb.GenerateResponse(started=self._started(event))
            case Chunk():
                return pb.GenerateResponse(chunk=self._chunk(event))
            case Finished():
                return pb.GenerateResponse(finished=_finished(event))

    def _started(self, event: Started) -> pb.Started:
        return pb.Started(
            session_id=event.session_id,
            model=self._model,
            prompt_tokens=event.prompt_tokens,
            seed=event.seed,
        )

    def _chunk(self, chunk: Chunk) -> pb.TextChunk:
        return pb.TextChunk(
            text="".join(part.text for part in chunk.parts if isinstance(part, Said)),
            position=chunk.position,
            token_ids=chunk.token_ids,
            accepted=chunk.accepted,
            durable=chunk.durable,
            reasoning="".join(part.text for part in chunk.parts if isinstance(part, Thought)),
            tool_calls=self._calls(chunk.parts),
            characters=chunk.characters,
            logprobs=map(wire.token_logprobs_to_proto, chunk.logprobs),
            prompt_logprobs=map(wire.token_logprobs_to_proto, chunk.prompt_logprobs),
        )

    def _calls(self, parts: Iterable[Part]) -> list[pb.ToolCallDelta]:
        deltas: list[pb.ToolCallDelta] = []
        for part in parts:
            match part:
                case CallBegan(index, name):
                    deltas.append(
                        pb.ToolCallDelta(index=index, id=call_id(self._session_id, index), name=name)
                    )
                case CallArguments(index, text) if deltas and deltas[-1].index == index:
                    deltas[-1].arguments += text
                case CallArguments(index, text):
                    deltas.append(pb.ToolCallDelta(index=index, arguments=text))
        return deltas


def _finished(event: Finished) -> verifier_pb2.Finished:
    return verifier_pb2.Finished(
        reason=wire.finish_reason_to_proto(event.reason), receipt=wire.receipt_to_proto(event.receipt)
    )
