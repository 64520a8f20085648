"""Matchers: masks against every text of a language, paths of trees against texts from the beginning."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer
from numpy.typing import NDArray

from paceline.constraints.compiler import compiled
from paceline.constraints.constraint import Constraint, ConstraintError, Kind
from paceline.constraints.matcher import GrammarMatcher, MatcherError
from paceline.constraints.vocabulary import Vocabulary

# The last two end a text; the one before is an id without a token.
TOKENS = [b"a", b"b", b"c", b"ab", b"ba", b"abc", b"cc", b"", b"", b""]
STOPS = frozenset({8, 9})
TEXTS = [token.decode() for token in TOKENS[:7]]


@dataclass
class _Words:
    """A tokenizer as the library wants it."""

    tokens: Sequence[bytes]
    eos_token_id: int = 8
    bos_token_id: int | None = None
    special_token_ids: Sequence[int] = (8, 9)
    is_tokenizer_wrapper: bool = True

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            token = max((each for each in TEXTS if text.startswith(each)), key=len)
            ids.append(TEXTS.index(token))
            text = text[len(token) :]
        return ids


VOCABULARY = Vocabulary(LLTokenizer(_Words(TOKENS)), "test", len(TOKENS))  # type: ignore[arg-type]


def _matcher(constraint: Constraint, stops: frozenset[int] = STOPS) -> GrammarMatcher:
    return GrammarMatcher(compiled(constraint, VOCABULARY), VOCABULARY, stops)


def _regex(pattern: str) -> Constraint:
    return Constraint(Kind.REGEX, pattern)


def _free(pattern: str) -> Constraint:
    """The same, but the one continuation that may be left can be cut into tokens in each way."""
    return Constraint(Kind.GRAMMAR, f'%llguidance {{"no_forcing": true}}\nstart: /{pattern}/')


def _ids(mask: NDArray[np.uint32]) -> set[int]:
    return {int(each) for each in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))}


def _forced(matcher: GrammarMatcher, most: int) -> list[int]:
    return next((tokens for _, tokens in matcher.continued((), (), most)), [])


def _text(ids: Iterable[int]) -> str:
    return "".join(TEXTS[token] for token in ids)


# A pattern and all texts that it matches.
_Language = tuple[str, frozenset[str]]


def _joined(parts: tuple[_Language, _Language]) -> _Language:
    (one, ones), (other, others) = parts
    return one + other, frozenset(left + right for left, right in product(ones, others))


def _either(parts: tuple[_Language, _Language]) -> _Language:
    (one, ones), (other, others) = parts
    return f"({one}|{other})", ones | others


def _repeated(part: _Language) -> _Language:
    pattern, texts = part
    return f"({pattern}){{0,2}}", texts | {""} | {left + right for left, right in product(texts, texts)}


LANGUAGES = st.recursive(
    st.sampled_from("abc").map(lambda letter: (letter, frozenset({letter}))),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(_joined),
        st.tuples(inner, inner).map(_either),
        inner.map(_repeated),
    ),
    max_leaves=5,
).filter(lambda language: len(language[1]) <= 200 and any(language[1]))


def _expected(texts: frozenset[str], so_far: str) -> set[int]:
    going_on = {
        token for token, text in enumerate(TEXTS) if any(whole.startswith(so_far + text) for whole in texts)
    }
    return going_on | (STOPS if so_far in texts else set())


@given(language=LANGUAGES, data=st.data())
def test_a_mask_is_what_some_text_of_the_language_goes_on_with(
    language: _Language, data: st.DataObject
) -> None:
    pattern, texts = language
    matcher = _matcher(_free(pattern))
    path: list[int] = []
    while True:
        allowed = _ids(matcher.mask(path))
        assert allowed == _expected(texts, _text(path))
        going_on = sorted(allowed - STOPS)
        if not going_on:
            break
        path.append(data.draw(st.sampled_from(going_on)))
    assert re.fullmatch(pattern, _text(path))


TREES = st.integers(1, 24).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(0, len(TEXTS) + 2), min_size=count, max_size=count),
        st.tuples(*(st.integers(-1, node - 1) for node in range(count))),
    )
)


def _path(tokens: Sequence[int], parents: Sequence[int], node: int) -> list[int]:
    above = _path(tokens, parents, parents[node]) if parents[node] >= 0 else []
    return [*above, tokens[node]]


@given(language=LANGUAGES, tree=TREES, data=st.data(), constraint=st.sampled_from([_regex, _free]))
def test_a_tree_is_judged_node_by_node_as_its_paths_are_from_the_beginning(
    language: _Language,
    tree: tuple[list[int], tuple[int, ...]],
    data: st.DataObject,
    constraint: Callable[[str], Constraint],
) -> None:
    tokens, parents = tree
    matcher = _matcher(constraint(language[0]))
    legal = matcher.legal(tokens, parents).tolist()
    for node in data.draw(st.permutations(range(len(tokens)))):
        path = _path(tokens, parents, node)
        fresh = _matcher(constraint(language[0]))
        stands = True
        for place, token in enumerate(path):
            ended = bool(STOPS.intersection(path[:place]))
            stands = stands and not ended and token in _ids(fresh.mask(()))
            if stands:
                fresh.commit([token])
        assert legal[node] == stands
        if stands:
            assert _ids(matcher.mask(path)) == _ids(fresh.mask(()))


@given(language=LANGUAGES)
def test_where_one_continuation_is_left_its_tokens_are_the_only_ones(language: _Language) -> None:
    pattern, texts = language
    matcher = _matcher(_regex(pattern))
    forced = _forced(matcher, 8)
    for place, token in enumerate(forced):
        assert _ids(matcher.mask(forced[:place])) == {token}
    assert all(text.startswith(_text(forced)) for text in texts)
    assert _forced(matcher, 1) == forced[:1]


@given(language=LANGUAGES, data=st.data())
def test_it_goes_on_from_what_is_committed(language: _Language, data: st.DataObject) -> None:
    matcher, committed = _matcher(_regex(language[0])), list[int]()
    for _ in range(6):
        allowed = sorted(_ids(matcher.mask(())))
        ids = [data.draw(st.sampled_from(allowed))]
        if data.draw(st.booleans()):
            ids.append(data.draw(st.sampled_from(sorted(_ids(matcher.mask(ids))))))
        if STOPS.intersection(ids[:-1]):
            break
        matcher.commit(ids)
        committed += ids
        fresh = _matcher(_regex(language[0]))
        fresh.commit(committed)
        assert _ids(matcher.mask(())) == _ids(fresh.mask(()))
        if ids[-1] in STOPS:
            break
    back = data.draw(st.integers(0, len(committed)))
    earlier, fresh = matcher.before(back), _matcher(_regex(language[0]))
    fresh.commit(committed[: len(committed) - back])
    assert _ids(earlier.mask(())) == _ids(fresh.mask(()))


def test_behind_the_end_there_is_only_the_end() -> None:
    matcher = _matcher(_regex("ab"))
    assert _ids(matcher.mask([3])) == STOPS
    assert _ids(matcher.mask([3, 8])) == STOPS
    matcher.commit([3, 9])
    assert _ids(matcher.mask(())) == STOPS
    assert matcher.legal([8], [-1]).tolist() == [False]
    with pytest.raises(MatcherError):
        matcher.commit([8])


def test_a_stop_id_that_is_text_ends_a_text_wherever_it_may_stand() -> None:
    matcher = _matcher(_regex("(a|b)c"), stops=frozenset({0, 8}))
    assert _ids(matcher.mask(())) == {0, 1}
    assert matcher.legal([0, 1, 0, 2, 8, 0], [-1, -1, 1, 1, 3, 3]).tolist() == [
        *(True, True, False),
        *(True, True, True),
    ]


def test_the_end_of_an_incomplete_text_is_said() -> None:
    with pytest.raises(MatcherError, match="ends where"):
        _matcher(_regex("ab")).commit([0, 8])


@given(language=LANGUAGES, least=st.integers(0, 6), data=st.data())
def test_before_so_many_tokens_a_text_ends_only_where_it_cannot_go_on(
    language: _Language, least: int, data: st.DataObject
) -> None:
    start = compiled(_free(language[0]), VOCABULARY)
    matcher = GrammarMatcher(start, VOCABULARY, STOPS, least=least)
    free = GrammarMatcher(start, VOCABULARY, STOPS)
    path: list[int] = []
    while not STOPS.intersection(path):
        allowed, all_of_them = _ids(matcher.mask(path)), _ids(free.mask(path))
        going_on = all_of_them - STOPS
        assert allowed == (going_on if len(path) < least and going_on else all_of_them)
        stop = [*path, 8]
        chain = range(-1, len(path))
        assert matcher.legal(stop, chain).tolist()[-1] == (8 in allowed)
        path.append(data.draw(st.sampled_from(sorted(allowed))))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(MatcherError, match="do not fit"):
        _matcher(_regex("ab")).commit([2])


def test_a_text_that_no_token_continues_is_said() -> None:
    with pytest.raises(ConstraintError, match="no text"):
        _matcher(_free("x|y"))


@given(language=LANGUAGES, tree=TREES)
def test_leaves_go_on_where_one_continuation_is_left(
    language: _Language, tree: tuple[list[int], tuple[int, ...]]
) -> None:
    matcher = _matcher(_regex(language[0]))
    legal = matcher.legal(*tree).tolist()
    kept = [node for node, each in enumerate(legal) if each]
    place = {-1: -1} | {node: index for index, node in enumerate(kept)}
    tokens, parents = [tree[0][node] for node in kept], [place[tree[1][node]] for node in kept]
    for leaf, following in matcher.continued(tokens, parents, 4):
        assert leaf not in parents
        path = _path(tokens, parents, leaf) if leaf >= 0 else []
        for token in following:
            assert _ids(matcher.mask(path)) == {token}
            path.append(token)


def test_a_long_continuation_without_a_choice_is_known() -> None:
    assert _text(_forced(_matcher(_regex("(abc){4}(b|cc)")), 8)).startswith("abcabcabc")


def test_a_branch_that_takes_too_much_is_left_and_the_text_goes_on() -> None:
    matcher = _matcher(Constraint(Kind.GRAMMAR, 'start: "c" /[abc]*/ | "a" "b"{1000000}'))
    assert matcher.legal([0, 0, 2], [-1, 0, -1]).tolist()[2]
    matcher.commit([2])
    assert {0, 1, 2} <= _ids(matcher.mask(()))
