"""What of the trees that wait for a session a step may verify.

Under a constraint that is what of them it allows, and what it leaves no choice about: a draft like others,
from a source of its own.
"""

from __future__ import annotations

from paceline.constraints.matcher import GrammarMatcher
from verifier_svc.budget import DraftBudget
from verifier_svc.drafting import Ready
from verifier_svc.merge import MergedTree, merge
from verifier_svc.offers import fitting
from verifier_svc.sessions import Session

# Most tokens of a continuation without a choice that are taken as a draft, behind each leaf.
_MOST_FORCED = 16


def ready(session: Session, budget: DraftBudget) -> Ready:
    """The session's trees on its text, merged and judged. It is found once for a text and its trees.

    Nodes deeper than the session can use, and all but the best ones that its client allows, are left out.
    """
    drafting, length = session.drafting, session.length
    known = drafting.ready
    if known.offers is drafting.offers and known.length == length:
        return known
    kept, parts = fitting(drafting.offers, session.token_ids)
    late = sum(offer.fresh for offer in drafting.offers) - sum(offer.fresh for offer in kept)
    merged = merge(parts)
    if session.matcher is not None:
        merged = _held(session, session.matcher, merged)
    merged = merged.down_to(session.max_draft_depth)
    tree = budget.judged(drafting.stream_id, merged)
    most = session.limits.max_nodes
    if most and len(tree) > most:
        best = sorted(tree.best_nodes(most))
        merged = merged.only([node in best for node in range(len(merged))])
        tree = tree.select(best)
    drafting.ready = Ready(drafting.offers, length, kept, late, merged, tree)
    return drafting.ready


def _held(session: Session, matcher: GrammarMatcher, merged: MergedTree) -> MergedTree:
    """What the constraint allows of a tree, and behind its leaves what it leaves no choice about."""
    merged = merged.only(matcher.legal(merged.tokens, merged.parents).tolist())
    if not session.plain:
        for leaf, tokens in matcher.continued(merged.tokens, merged.parents, _MOST_FORCED):
            merged = merged.grown(leaf, tokens, session.drafting.grammar_source)
    return merged
