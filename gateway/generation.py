"""What a client asked for, and how a session's record keeps it for the next gateway."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gateway.caller import Caller
from gateway.reading import PLAIN, Reading
from paceline.logprobs import NO_LOGPROBS, LogprobsWanted
from paceline.sampling import SamplingParams
from paceline.session import NO_LIMITS, SessionKey, SpeculationLimits
from paceline.store import SessionRecord


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an HTTP reply. `kind` also tells the kind of prompt of a session begun over gRPC."""

    kind: Literal["chat", "text"] = "text"
    include_usage: bool = False
    # Unix seconds, for OpenAI's `created`.
    created: int = 0
    # Usage in each chunk.
    continuous_usage: bool = False
    # The choice's place in the reply.
    index: int = 0
    # Special tokens have text.
    special_tokens: bool = False
    # The stop string, or the stop id's text, that ends the text is part of it.
    stop_in_text: bool = False
    # The prompt precedes the text.
    echo: bool = False
    # The reply has the ids of prompt and text.
    token_ids: bool = False
    # How the answer's text is read.
    reading: Reading = PLAIN

    @classmethod
    def recorded(cls, fields: dict[str, Any]) -> Form:
        """From its fields as JSON keeps them."""
        return cls(**{**fields, "reading": Reading.recorded(fields.get("reading", {}))})


@dataclass(frozen=True, slots=True)
class Generation:
    """One continuation to generate, from either face."""

    model_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stops: tuple[str, ...] = ()
    speculation: bool = True
    form: Form = Form()
    logprobs: LogprobsWanted = NO_LOGPROBS
    # The client's own guess at the answer. No part of the record: without it the text is the same.
    prediction_ids: tuple[int, ...] = ()
    # Of its holder's sessions that wait, the lowest is served first.
    priority: int = 0
    # Only sessions of one salt share what is computed of their texts, and what drafters learn of them.
    cache_salt: str = ""
    # Of its drafts.
    limits: SpeculationLimits = NO_LIMITS

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_ids)

    @property
    def max_tokens(self) -> int:
        """Most tokens of the answer."""
        return self.sampling.max_tokens

    def record(
        self,
        key: SessionKey,
        caller: Caller,
        committed_ids: Sequence[int] = (),
        committed_logprobs: bytes = b"",
    ) -> SessionRecord:
        """The session's record."""
        reply = {
            "caller": caller.id,
            "stops": self.stops,
            "speculation": self.speculation,
            "form": asdict(self.form),
            "cache_salt": self.cache_salt,
            "limits": asdict(self.limits),
        }
        return SessionRecord(
            key,
            self.model_id,
            self.prompt_ids,
            self.sampling,
            tuple(committed_ids),
            json.dumps(reply),
            logprobs=self.logprobs,
            committed_logprobs=committed_logprobs,
        )

    @classmethod
    def recorded(cls, record: SessionRecord) -> tuple[Generation, Caller]:
        """The generation and the caller in a record."""
        reply = json.loads(record.reply)
        wanted = cls(
            record.model_id,
            record.prompt_ids,
            record.sampling,
            tuple(reply["stops"]),
            reply["speculation"],
            Form.recorded(reply["form"]),
            record.logprobs,
            # Records of releases before these do not have them.
            cache_salt=reply.get("cache_salt", ""),
            limits=SpeculationLimits(**reply.get("limits", {})),
        )
        return wanted, Caller(reply["caller"])


@dataclass(frozen=True, slots=True)
class Asked:
    """A continuation of a prompt that is not tokenised yet."""

    form: Form
    # Estimates, for limits.
    prompt_tokens: int
    max_tokens: int
    # Tokenises the prompt, given the key holder and the latest time for its turn, on the event loop's clock.
    # Raises `RequestError` if the prompt does not fit.
    generation: Callable[[str, float], Awaitable[Generation]]
    priority: int = 0
    logprobs: LogprobsWanted = NO_LOGPROBS
