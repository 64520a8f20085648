"""The events of a generation."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.logprobs import TokenLogprobs
from paceline.net.wire import finish_reason_from_proto, receipt_from_proto, token_logprobs_from_proto
from paceline.session import FinishReason, Receipt
from paceline.v1 import gateway_pb2


@dataclass(frozen=True, slots=True)
class Started:
    """First event: the session's id, and the seed in force."""

    session_id: str
    model: str
    prompt_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A call, or more of its arguments: JSON text to be put behind what came before.

    `index` counts the answer's calls; id and name come with a call's first delta.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Committed tokens and the text that is complete with them; a drafter guessed the first `accepted`."""

    text: str
    position: int
    token_ids: tuple[int, ...]
    accepted: int
    # Whether a durable store has the tokens. If not and their verifier dies, they are drawn again, the same.
    durable: bool = True
    # In a chat the text is the content alone; before it comes the reasoning, behind it the calls of tools.
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    # Characters of the session's text that came with it, reasoning and calls included.
    characters: int = 0
    # Of each token, and of the prompt's from the second on, where they were asked for.
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event."""

    reason: FinishReason
    receipt: Receipt


Event = Started | Chunk | Finished


def event_from_proto(response: gateway_pb2.GenerateResponse) -> Event:
    """The event in a response."""
    match response.WhichOneof("event"):
        case "started":
            started = response.started
            return Started(started.session_id, started.model, started.prompt_tokens, started.seed)
        case "chunk":
            chunk = response.chunk
            calls = tuple(
                ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in chunk.tool_calls
            )
            return Chunk(
                chunk.text,
                chunk.position,
                tuple(chunk.token_ids),
                chunk.accepted,
                chunk.durable,
                chunk.reasoning,
                calls,
                chunk.characters,
                tuple(map(token_logprobs_from_proto, chunk.logprobs)),
                tuple(map(token_logprobs_from_proto, chunk.prompt_logprobs)),
            )
        case _:
            finished = response.finished
            return Finished(finish_reason_from_proto(finished.reason), receipt_from_proto(finished.receipt))
