"""What a verifier says of its kept texts to gateways that heard of them, or of another's, before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import grpc

from paceline.engine.blocks import BlockAllocator
from paceline.v1.verifier_pb2 import PrefixesRequest, PrefixesResponse
from verifier_svc.prefix_rpc import PrefixRpc
from verifier_svc.sessions import SessionTable

CONTEXT = cast("grpc.aio.ServicerContext[Any, Any]", None)


def served(*, keep_texts: bool = True) -> tuple[BlockAllocator, PrefixRpc]:
    allocator = BlockAllocator(8, 16, keep_texts=keep_texts)
    loop = SimpleNamespace(table=SessionTable(4), allocator=allocator)
    return allocator, PrefixRpc(cast(Any, loop))


async def ask(rpc: PrefixRpc, after: PrefixesResponse | None = None) -> PrefixesResponse:
    request = PrefixesRequest()
    if after is not None:
        request = PrefixesRequest(instance=after.instance, cursor=after.cursor)
    return await rpc.Prefixes(request, CONTEXT)


async def test_who_comes_again_hears_what_has_changed() -> None:
    allocator, rpc = served()
    assert allocator.kept is not None
    allocator.kept.add(7)
    first = await ask(rpc)
    assert (first.anew, list(first.added), list(first.removed), first.block_size) == (True, [7], [], 16)
    allocator.kept.add(8)
    allocator.kept.remove(7)
    again = await ask(rpc, first)
    assert (again.anew, list(again.added), list(again.removed)) == (False, [8], [7])


async def test_who_heard_the_verifier_before_at_this_address_hears_all_anew() -> None:
    before, rpc_before = served()
    now, rpc = served()
    assert before.kept is not None
    assert now.kept is not None
    before.kept.add(1)
    now.kept.add(2)
    told = await ask(rpc, await ask(rpc_before))
    assert (told.anew, list(told.added)) == (True, [2])


async def test_a_verifier_without_prefix_cache_holds_nothing() -> None:
    _, rpc = served(keep_texts=False)
    told = await ask(rpc)
    assert (told.anew, list(told.added), told.block_size) == (True, [], 0)
