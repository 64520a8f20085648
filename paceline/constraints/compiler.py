"""From a constraint to the matcher of a text that begins."""

from __future__ import annotations

from llguidance import LLMatcher

from paceline.constraints.constraint import Constraint, ConstraintError
from paceline.constraints.grammars import LIMITS, grammar_of, reason
from paceline.constraints.matcher import GrammarMatcher, MatcherError
from paceline.constraints.vocabulary import Vocabulary


def compiled(constraint: Constraint, vocabulary: Vocabulary) -> LLMatcher:
    """The matcher of a text that begins, for copies of it. Raises `ConstraintError`; see `Trial` for bounds.

    The interpreter's lock is free meanwhile.
    """
    start = LLMatcher(vocabulary.tokens, grammar_of(constraint), limits=LIMITS, log_level=0)
    if start.is_error():
        raise ConstraintError(reason(start.get_error()))
    try:
        GrammarMatcher(start, vocabulary, frozenset(vocabulary.tokens.eos_tokens)).mask(())
    except MatcherError as error:
        raise ConstraintError(str(error)) from error
    return start
