"""A session's committed tokens and the text of its answer: tokens in, chunks of text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gateway.detokenize import Detokenizer, StopStrings
from gateway.errors import INTERNAL, RequestError
from gateway.events import Chunk, Finished
from gateway.generation import Generation
from paceline.logprobs import LogprobsWanted, TokenLogprobs, unpack
from paceline.session import (
    NO_COSTS,
    DraftCosts,
    FinishReason,
    Receipt,
    SourceTokens,
    add_depths,
    add_up,
)
from paceline.store import SessionRecord

Told = Chunk | Finished


class Transcript:
    """One session's tokens and text. Nothing follows `Finished`."""

    def __init__(self, wanted: Generation, detokenizer: Detokenizer) -> None:
        """`detokenizer`: a fresh one."""
        self._wanted = wanted
        self._detokenizer = detokenizer
        if wanted.form.kind == "text":
            detokenizer.follow(wanted.prompt_ids)
        self._stops = StopStrings(wanted.stops, shown=wanted.form.stop_in_text)
        self._committed: list[int] = []
        # Packed, of the committed ids.
        self._logprobs = bytearray()
        self._prompt_scored = False
        self._durable = True
        self._receipt = Receipt()
        self._ended = False

    @property
    def committed_ids(self) -> Sequence[int]:
        """Committed ids that the client has been sent."""
        return self._committed

    @property
    def committed_logprobs(self) -> bytes:
        """Packed log-probabilities of the committed ids; empty where they are not wanted."""
        return bytes(self._logprobs)

    @property
    def logprobs_to_come(self) -> LogprobsWanted:
        """What a verifier is asked for now: the prompt's are told once."""
        wanted = self._wanted.logprobs
        return replace(wanted, prompt_top=None) if self._prompt_scored else wanted

    @property
    def ended(self) -> bool:
        """Whether `Finished` has been returned."""
        return self._ended

    @property
    def position(self) -> int:
        """Position of the next id: an index in prompt + committed."""
        return len(self._wanted.prompt_ids) + len(self._committed)

    def ids(self) -> list[int]:
        """Prompt and committed ids."""
        return [*self._wanted.prompt_ids, *self._committed]

    def take(
        self,
        position: int,
        token_ids: Sequence[int],
        *,
        accepted: int,
        drafted: int,
        durable: bool,
        sources: Sequence[SourceTokens] = (),
        drafts: DraftCosts = NO_COSTS,
        logprobs: bytes = b"",
        prompt_logprobs: bytes = b"",
    ) -> list[Told]:
        """The chunks of one step's tokens. Drafted tokens and the target's own come in chunks of their own.

        `accepted`: how many of the tokens, the first ones, a drafter guessed; `drafted`: tree nodes that were
        verified; `sources`: both by source; `drafts`: what they cost. `logprobs`: of the tokens, packed;
        `prompt_logprobs`: of the prompt's. Tokens that are known already, as after a move, are skipped.
        Raises `RequestError` for gaps.
        """
        known = self.position - position
        if known < 0:
            raise RequestError(INTERNAL, f"the verifier left out positions {self.position} to {position - 1}")
        fresh = tuple(token_ids[known:])
        if not fresh or self._ended:
            return []
        accepted = min(len(fresh), max(0, accepted - known))
        width = self._wanted.logprobs.width
        if len(logprobs) != len(token_ids) * width:
            raise RequestError(INTERNAL, "the verifier left out log-probabilities")
        scores = logprobs[known * width :]
        chunks: list[Chunk] = []
        for part, guessed, scored in (
            (fresh[:accepted], accepted, scores[: accepted * width]),
            (fresh[accepted:], 0, scores[accepted * width :]),
        ):
            if part and not self._stops.matched:
                chunks.append(self._chunk(part, guessed, scored, durable=durable))
        if prompt_logprobs and chunks:
            chunks[0] = replace(chunks[0], prompt_logprobs=self._prompt_logprobs(prompt_logprobs))
        self._count(chunks, drafted, sources, drafts)
        return [*chunks, self._finish(FinishReason.STOP)] if self._stops.matched else list(chunks)

    def _count(
        self, chunks: Sequence[Chunk], drafted: int, sources: Sequence[SourceTokens], drafts: DraftCosts
    ) -> None:
        """Add a step's chunks to the receipt."""
        accepted = sum(chunk.accepted for chunk in chunks)
        # The client is told of no token behind a stop string.
        told = (replace(each, accepted_tokens=min(each.accepted_tokens, accepted)) for each in sources)
        self._receipt = Receipt(
            steps=self._receipt.steps + 1,
            committed_tokens=self._receipt.committed_tokens + sum(len(chunk.token_ids) for chunk in chunks),
            drafted_tokens=self._receipt.drafted_tokens + drafted,
            accepted_tokens=self._receipt.accepted_tokens + accepted,
            drafted_steps=self._receipt.drafted_steps + (drafted > 0),
            sources=add_up((*self._receipt.sources, *told)),
            accepted_by_depth=add_depths(self._receipt.accepted_by_depth, (1,) * accepted),
            drafts=self._receipt.drafts.and_(drafts),
        )

    def catch_up(self, record: SessionRecord, *, durable: bool) -> list[Told]:
        """What the record has beyond what the client was sent, and `Finished` if the session has ended.

        `durable`: whether the record's store is durable.
        """
        told: list[Told] = []
        if untold := record.committed_ids[len(self._committed) :]:
            scored = record.committed_logprobs[len(self._logprobs) :]
            told.append(self._chunk(untold, 0, scored, durable=durable))
        if self._stops.matched:
            return [*told, self._finish(FinishReason.STOP)]
        reason = record.finish_reason or self._reason_to_end()
        return told if reason is None else [*told, *self.end(reason)]

    def end(self, reason: FinishReason) -> list[Told]:
        """The text that was held back, then `Finished`."""
        tail = self._stops.push(self._detokenizer.flush())
        if self._stops.matched:
            reason = FinishReason.STOP
        tail += self._stops.flush()
        finished = self._finish(reason)
        return [Chunk(tail, self.position, (), 0, self._durable), finished] if tail else [finished]

    def _finish(self, reason: FinishReason) -> Finished:
        self._ended = True
        stop = self._stop_id(self._committed) if reason is FinishReason.STOP else None
        return Finished(reason, self._receipt, self._stops.found or stop)

    def _chunk(self, fresh: Sequence[int], accepted: int, scored: bytes, *, durable: bool) -> Chunk:
        """`scored`: the packed log-probabilities of `fresh`."""
        position = self.position
        text, told = self._text(fresh)
        self._committed += told
        self._durable = durable
        top, scored = self._wanted.logprobs.top, scored[: len(told) * self._wanted.logprobs.width]
        self._logprobs += scored
        logprobs = () if top is None else tuple(unpack(scored, top))
        return Chunk(text, position, tuple(told), min(accepted, len(told)), durable, logprobs)

    def _prompt_logprobs(self, packed: bytes) -> tuple[TokenLogprobs, ...]:
        top = self._wanted.logprobs.prompt_top
        if top is None or self._prompt_scored:
            return ()
        self._prompt_scored = True
        return tuple(unpack(packed, top))

    def _text(self, fresh: Sequence[int]) -> tuple[str, Sequence[int]]:
        """The text of new ids, and the ids up to a stop string, if one has come.

        A stop id, which is the last id, has text only where the stop is wanted in the text.
        """
        hidden = self._stop_id(fresh) is not None and not self._wanted.form.stop_in_text
        spoken = fresh[:-1] if hidden else fresh
        if not self._wanted.stops:
            return self._detokenizer.push(spoken), fresh
        text = ""
        first = self.position
        for count, token in enumerate(spoken, 1):
            new = self._detokenizer.push((token,))
            # Text before `stop_from` cannot be part of a stop string.
            text += self._stops.push(new) if first + count > self._wanted.sampling.stop_from else new
            if self._stops.matched:
                return text, fresh[:count]
        return text, fresh

    def _stop_id(self, ids: Sequence[int]) -> int | None:
        """The stop id that ends these ids, if one does."""
        return ids[-1] if ids and ids[-1] in self._wanted.sampling.stop_token_ids else None

    def _reason_to_end(self) -> FinishReason | None:
        """Why the committed ids end the session; None if they do not."""
        if self._stop_id(self._committed) is not None:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self._committed) >= self._wanted.sampling.max_tokens else None
