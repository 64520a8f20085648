"""What a generation cost, measured at the client, and how it is shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from paceline.cli.console import DRAFTED, OWN
from paceline.client import Chunk, Event, Finished, Started
from paceline.session import FinishReason, Receipt


@dataclass(frozen=True, slots=True)
class Measured:
    """One finished generation. `seconds` runs from the request to its last token, prefill included."""

    started: Started
    text: str
    token_ids: tuple[int, ...]
    reason: FinishReason
    receipt: Receipt
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over the whole time."""
        return len(self.token_ids) / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, object]:
        """For `--json`; one flat object."""
        receipt = self.receipt
        return {
            "session_id": self.started.session_id,
            "model": self.started.model,
            "seed": self.started.seed,
            "prompt_tokens": self.started.prompt_tokens,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.reason.value,
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(self.tokens_per_second, 2),
            "acceptance_length": round(receipt.acceptance_length, 3),
            "steps": receipt.steps,
            "drafted_tokens": receipt.drafted_tokens,
            "accepted_tokens": receipt.accepted_tokens,
            "sources": {
                each.name: {"drafted_tokens": each.drafted_tokens, "accepted_tokens": each.accepted_tokens}
                for each in receipt.sources
            },
        }

    def summary(self) -> str:
        """One line for people."""
        receipt, count = self.receipt, len(self.token_ids)
        parts = [
            f"{count} tokens in {self.seconds:.2f} s",
            f"{self.tokens_per_second:.1f} tokens/s",
            f"acceptance length {receipt.acceptance_length:.2f}",
            f"{receipt.accepted_tokens} of {count} tokens drafted{self._by_source()}",
            f"finish: {self.reason.value}",
            f"seed {self.started.seed}",
        ]
        return " | ".join(parts)

    def _by_source(self) -> str:
        """How many of the drafted tokens each source proposed; nothing where only one did."""
        told = [
            f"{each.name} {each.accepted_tokens}" for each in self.receipt.sources if each.accepted_tokens
        ]
        return f" ({', '.join(told)})" if len(told) > 1 else ""


class Recorder:
    """Collects the events of one generation; hands each piece of text with its style to `show`."""

    def __init__(self, show: Callable[[str, str], None] | None = None) -> None:
        self._show = show
        self._begin = time.perf_counter()
        self._last = self._begin
        self._started: Started | None = None
        self._chunks: list[Chunk] = []
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Take the next event of the stream."""
        match event:
            case Started():
                self._started = event
            case Chunk():
                self._chunks.append(event)
                self._last = time.perf_counter()
                if self._show and event.text:
                    self._show(event.text, DRAFTED if event.accepted else OWN)
            case Finished():
                self._finished = event

    def measured(self) -> Measured | None:
        """The whole, or None when the stream ended before it was finished."""
        if self._started is None or self._finished is None:
            return None
        return Measured(
            self._started,
            "".join(chunk.text for chunk in self._chunks),
            tuple(token for chunk in self._chunks for token in chunk.token_ids),
            self._finished.reason,
            self._finished.receipt,
            self._last - self._begin,
        )
