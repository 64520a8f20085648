"""What a gateway knows of verifiers' texts, against the verifiers' own record of them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.backlog import Backlog
from gateway.routing.texts import HeldTexts, RoutedText
from paceline.engine.kept_texts import KeptTexts
from paceline.prefix import TextKeys
from paceline.v1 import verifier_pb2

BLOCK = 4


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def said(**fields: Any) -> verifier_pb2.PrefixesResponse:
    return verifier_pb2.PrefixesResponse(**{"instance": 1, "cursor": 1, "block_size": BLOCK, **fields})


def keys(*token_ids: int) -> list[int]:
    return list(TextKeys(BLOCK).of(token_ids))


def ask(texts: HeldTexts, kept: KeptTexts, limit: int = 3) -> None:
    """A poll, as the RPC answers it."""
    while True:
        told = kept.since(texts.cursor if texts.instance == kept.instance else None, limit)
        assert len(told.added) + len(told.removed) <= limit
        texts.hear(
            said(
                instance=kept.instance,
                cursor=told.cursor,
                anew=told.anew,
                added=told.added,
                removed=told.removed,
            )
        )
        if not told.more:
            return


@given(st.data())
def test_after_each_poll_it_knows_exactly_what_the_verifier_keeps(data: st.DataObject) -> None:
    """However many changes there were, also of more keys than are remembered, and after a restart."""
    kept, texts = KeptTexts(most=4), HeldTexts()
    held: list[int] = []
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["add", "add", "remove", "poll", "restart"])):
            case "add":
                key = data.draw(st.integers(1, 9))
                kept.add(key)
                if key not in held:
                    held = [*held, key][-4:]
            case "remove":
                key = data.draw(st.integers(1, 9))
                kept.remove(key)
                held = [each for each in held if each != key]
            case "restart":
                kept, held = KeptTexts(most=4), []
            case _:
                ask(texts, kept)
                assert texts.told == set(held)


def test_who_missed_a_removal_that_is_no_longer_remembered_is_told_everything_anew() -> None:
    kept, texts = KeptTexts(most=4), HeldTexts()
    for key in range(1, 5):
        kept.add(key)
    ask(texts, kept)
    cursor = texts.cursor
    for key in range(1, 5):
        kept.remove(key)
    assert not kept.since(cursor, limit=9).anew
    kept.add(5)
    kept.remove(5)
    assert kept.since(cursor, limit=9).anew
    assert not kept.since(cursor + 1, limit=9).anew, "it knows of the one that is forgotten"
    ask(texts, kept)
    assert texts.told == set()


def test_the_first_blocks_that_are_known_count_and_the_last_token_never_does() -> None:
    texts = HeldTexts()
    ids = list(range(12))
    assert texts.held_tokens(RoutedText(ids)) == 0
    texts.hear(said(added=keys(*ids)))
    assert texts.held_tokens(RoutedText(ids)) == 11
    assert texts.held_tokens(RoutedText([*ids, 1])) == 12
    assert texts.held_tokens(RoutedText([*ids[:8], 99, 99, 99, 99])) == 8
    assert texts.held_tokens(RoutedText([99, *ids])) == 0
    texts.hear(said(removed=keys(*ids)[2:]))
    assert texts.held_tokens(RoutedText([*ids, 1])) == 8


def test_what_was_sent_counts_at_once_until_the_verifier_says_otherwise_or_long_enough() -> None:
    clock = Clock()
    texts = HeldTexts(clock)
    chat = RoutedText(range(9))
    texts.send(chat)
    assert texts.held_tokens(chat) == 0, "the verifier has not said that it keeps texts"
    texts.hear(said())
    texts.send(chat)
    chat.grown(range(16))
    assert texts.held_tokens(chat) == 8
    texts.send(chat)
    assert texts.held_tokens(RoutedText(range(20))) == 16
    texts.hear(said(removed=keys(*range(16))[3:]))
    assert texts.held_tokens(chat) == 12
    clock.now = 61.0
    assert texts.held_tokens(chat) == 0
    texts.hear(said(added=keys(*range(4))))
    assert texts.held_tokens(chat) == 4


def test_nothing_is_believed_of_one_that_keeps_no_texts() -> None:
    texts = HeldTexts()
    texts.hear(said(anew=True, block_size=0))
    texts.send(RoutedText(range(100)))
    assert texts.held_tokens(RoutedText(range(100))) == 0


def test_a_backlog_is_what_the_verifier_says_and_what_was_sent_since() -> None:
    clock = Clock()
    backlog = Backlog(clock)
    backlog.send(50)
    clock.now = 1.0
    backlog.asking()
    backlog.send(7)
    clock.now = 1.1
    backlog.heard(100, 0.01)
    assert (backlog.tokens, backlog.sent_tokens) == (107, 7)
    clock.now = 1.6
    assert backlog.tokens == 57
    clock.now = 60.0
    assert backlog.tokens == 0
