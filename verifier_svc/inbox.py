"""The newest valid tree of each session: taken in, re-rooted when late, dropped and counted."""

from __future__ import annotations

from paceline.tree import TokenTree
from verifier_svc.sessions import Session


def take(session: Session, room: int) -> tuple[TokenTree, bool]:
    """What the next step may verify, at most `room` nodes; and whether a tree was dropped as late.

    The waiting tree is re-rooted along what was committed since its base. It is used up either way.
    Nodes past the session's last possible token are left out: one token of each step is the target's.
    """
    tree, base = session.tree, session.tree_base
    session.tree, session.offered_trees = None, 0
    if tree is None or not tree.tokens:
        return TokenTree(), False
    fitting = tree.reroot(session.token_ids[base:])
    if not fitting.tokens:
        return TokenTree(), True
    depths = fitting.depths()
    if max(depths) > session.deepest_node:
        fitting = fitting.select([node for node, depth in enumerate(depths) if depth <= session.deepest_node])
    return fitting.best(room), False


def put(session: Session, base: int, tree: TokenTree) -> None:
    """Keep a tree that hangs on `base` <= the session's length until the next step takes it."""
    session.tree, session.tree_base = tree, base
    session.offered_trees += 1
