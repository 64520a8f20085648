"""VerifierService.Prefixes: which beginnings of texts the prefix cache holds."""

from __future__ import annotations

import grpc

from paceline.net.rpc import refusals
from paceline.v1 import verifier_pb2
from verifier_svc.step import StepLoop

# Keys of an answer, 8 bytes each.
_MOST_KEYS = 4096


class PrefixRpc:
    """Answers with the changes since an earlier answer."""

    def __init__(self, loop: StepLoop) -> None:
        self._table = loop.table
        self._allocator = loop.allocator

    @refusals
    async def Prefixes(
        self, request: verifier_pb2.PrefixesRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.PrefixesResponse:
        """See verifier.proto."""
        kept = self._allocator.kept
        if kept is None:
            return verifier_pb2.PrefixesResponse(instance=1, anew=True)
        cursor = request.cursor if request.instance == kept.instance else None
        with self._table.lock:
            changes = kept.since(cursor, _MOST_KEYS)
        return verifier_pb2.PrefixesResponse(
            instance=kept.instance,
            cursor=changes.cursor,
            anew=changes.anew,
            more=changes.more,
            block_size=self._allocator.block_size,
            added=changes.added,
            removed=changes.removed,
        )
