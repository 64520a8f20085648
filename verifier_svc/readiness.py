"""What of the trees that wait for a session a step may verify."""

from __future__ import annotations

from verifier_svc.budget import DraftBudget
from verifier_svc.drafting import Ready
from verifier_svc.merge import merge
from verifier_svc.offers import fitting
from verifier_svc.sessions import Session


def ready(session: Session, budget: DraftBudget) -> Ready:
    """The session's trees on its text, merged and judged. It is found once for a text and its trees.

    Nodes deeper than the session can use are left out.
    """
    drafting, length = session.drafting, session.length
    known = drafting.ready
    if known.offers is drafting.offers and known.length == length:
        return known
    kept, parts = fitting(drafting.offers, session.token_ids)
    late = sum(offer.fresh for offer in drafting.offers) - sum(offer.fresh for offer in kept)
    merged = merge(parts).down_to(session.max_draft_depth)
    tree = budget.judged(drafting.stream_id, merged)
    drafting.ready = Ready(drafting.offers, length, kept, late, merged, tree)
    return drafting.ready
