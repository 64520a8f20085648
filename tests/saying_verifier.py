"""A verifier that says known texts, whatever it is asked, in pieces of a few tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc

from paceline.net import wire
from paceline.session import FinishReason, Receipt
from paceline.v1 import verifier_pb2
from tests.scripted_verifier import Response, ScriptedVerifier, tokens


class SayingVerifier(ScriptedVerifier):
    """Says one text's ids a session, the last text again and again. `dies_after`: so many tokens of each."""

    def __init__(self, *texts: Sequence[int], piece: int = 2, dies_after: int | None = None) -> None:
        super().__init__(())
        self.texts = texts
        self.piece = piece
        self.dies_after = dies_after
        self.reason = FinishReason.STOP

    async def Open(
        self, request: verifier_pb2.OpenRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Response]:
        if not request.committed_ids:
            self.opened.append(request)
        text = self.texts[min(len(self.opened), len(self.texts)) - 1]
        yield Response(opened=verifier_pb2.Opened())
        begin = len(request.committed_ids)
        for start in range(begin, len(text), self.piece):
            if self.dies_after is not None and start - begin >= self.dies_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
            yield tokens(len(request.prompt_ids) + start, *text[start : start + self.piece])
        yield Response(
            finished=verifier_pb2.Finished(
                reason=wire.finish_reason_to_proto(self.reason), receipt=wire.receipt_to_proto(Receipt())
            )
        )

    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.VerifierStatusResponse:
        status = await super().Status(request, context)
        status.max_context = 1 << 16
        return status
