"""One session as its gateway knows it, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.caller import Caller
from gateway.generation import Generation
from gateway.ownership import Ownership
from gateway.routing.texts import RoutedText
from gateway.suspicion import Suspicion
from gateway.transcript import Told, Transcript
from paceline.net.wire import drafts_from_proto, sources_from_proto
from paceline.service import spans
from paceline.v1 import verifier_pb2


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """One session: what was asked, what its client was told, and who owns it."""

    wanted: Generation
    caller: Caller
    transcript: Transcript
    text: RoutedText
    owned: Ownership
    suspicion: Suspicion
    # Stages of the session's span.
    stages: spans.Stages
    # On the monotonic clock; None sets none. Verifiers stop at it.
    deadline: float | None

    def take(self, tokens: verifier_pb2.CommittedTokens) -> list[Told]:
        """Take tokens in; what the client is to hear."""
        before = self.transcript.position
        told = self.transcript.take(
            tokens.position,
            tokens.token_ids,
            accepted=tokens.accepted,
            drafted=tokens.drafted,
            durable=tokens.durable,
            sources=sources_from_proto(tokens.sources),
            drafts=drafts_from_proto(tokens),
            logprobs=tokens.logprobs,
            prompt_logprobs=tokens.prompt_logprobs,
        )
        self.suspicion.got_on(self.transcript.position - before)
        return told
