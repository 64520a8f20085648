"""The verifier's RPCs under the names that gRPC looks them up by."""

from __future__ import annotations

from verifier_svc.draft_rpc import DraftRpc
from verifier_svc.open_rpc import OpenRpc
from verifier_svc.prefix_rpc import PrefixRpc
from verifier_svc.status_rpc import StatusRpc


class VerifierServicer:
    """VerifierService. One instance a process, on one event loop."""

    def __init__(
        self, open_rpc: OpenRpc, draft_rpc: DraftRpc, status_rpc: StatusRpc, prefix_rpc: PrefixRpc
    ) -> None:
        self.Open = open_rpc.Open
        self.Draft = draft_rpc.Draft
        self.Status = status_rpc.Status
        self.Prefixes = prefix_rpc.Prefixes
