"""A drafter that has the fault that the file $DRAFTER_FAULT names; without the file it has none."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from unittest.mock import patch

from drafter_svc.__main__ import command
from drafter_svc.methods.base import Ask
from drafter_svc.tenants import Tenants
from paceline.net import wire
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.v1 import tree_pb2


class Fault(StrEnum):
    """What is wrong with the drafter."""

    # It takes a third of a step of `monitored`'s verifier for its trees: waiting for them still pays.
    SLOW = "slow"
    # It drafts for another model: next to nothing of it is what this one says.
    WRONG = "wrong"
    # It writes trees that are none.
    GARBAGE = "garbage"


SLOW_SECONDS = 0.035
# Of so many trees of a wrong drafter one has a token that may be accepted. A drafter of which nothing ever is
# would be put aside.
ONE_IN = 16

_draft = Tenants.draft
_to_proto = wire.tree_to_proto
_numbers = itertools.count()


def _drafted(tenants: Tenants, asks: Sequence[Ask]) -> list[TokenTree]:
    fault = _fault()
    if fault is Fault.SLOW:
        time.sleep(SLOW_SECONDS)
    trees = _draft(tenants, asks)
    return [_wrong(tree) for tree in trees] if fault is Fault.WRONG else trees


def _wrong(tree: TokenTree) -> TokenTree:
    if next(_numbers) % ONE_IN == 0:
        return tree.best(1)
    # Siblings still differ.
    return TokenTree(tuple(token ^ 256 for token in tree.tokens), tree.parents, tree.log_probs)


def _written(key: SessionKey, base_length: int, tree: TokenTree) -> tree_pb2.TokenTree:
    message = _to_proto(key, base_length, tree)
    if _fault() is Fault.GARBAGE:
        # Each node is its own parent.
        message.parent[:] = range(len(tree))
    return message


def _fault() -> Fault | None:
    try:
        return Fault(Path(os.environ["DRAFTER_FAULT"]).read_text())
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    with patch.object(Tenants, "draft", _drafted), patch.object(wire, "tree_to_proto", _written):
        command()
