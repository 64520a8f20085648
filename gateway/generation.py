"""What a client asked for, and what a session's record keeps of it for the gateway that goes on."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from gateway.caller import Caller
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import SessionRecord


@dataclass(frozen=True, slots=True)
class Form:
    """How an HTTP reply is written; `kind` says of a session begun over gRPC, too, what its prompt was."""

    kind: Literal["chat", "text"] = "text"
    include_usage: bool = False
    # Unix seconds; OpenAI's bodies carry it.
    created: int = 0
    # Usage in every chunk.
    continuous_usage: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """One continuation, whichever face it was asked through."""

    model_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stops: tuple[str, ...] = ()
    speculation: bool = True
    form: Form = Form()

    @property
    def prompt_tokens(self) -> int:
        """The prompt's length."""
        return len(self.prompt_ids)

    @property
    def max_tokens(self) -> int:
        """Tokens of the answer at the most."""
        return self.sampling.max_tokens

    def record(self, key: SessionKey, caller: Caller, committed_ids: Sequence[int] = ()) -> SessionRecord:
        """The session's record."""
        reply = {
            "caller": caller.id,
            "stops": self.stops,
            "speculation": self.speculation,
            "form": asdict(self.form),
        }
        return SessionRecord(
            key, self.model_id, self.prompt_ids, self.sampling, tuple(committed_ids), json.dumps(reply)
        )

    @classmethod
    def recorded(cls, record: SessionRecord) -> tuple[Generation, Caller]:
        """What a record asks for, and whose session it is."""
        reply = json.loads(record.reply)
        wanted = cls(
            record.model_id,
            record.prompt_ids,
            record.sampling,
            tuple(reply["stops"]),
            reply["speculation"],
            Form(**reply["form"]),
        )
        return wanted, Caller(reply["caller"])


@dataclass(frozen=True, slots=True)
class Asked:
    """A continuation of a prompt that is not tokenised yet."""

    form: Form
    # Tokens as they may be, for limits.
    prompt_tokens: int
    max_tokens: int
    # The session, for a key's holder; it waits in turn until the given time on the event loop's clock. Raises
    # `RequestError` where the prompt does not fit.
    generation: Callable[[str, float], Awaitable[Generation]]
