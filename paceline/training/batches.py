"""Texts in batches of about one number of tokens, in an order that the seed and the epoch alone decide."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from paceline.training.corpus import Text

# One job in so many is kept out of training, with all its texts: they share passages.
HELD_OUT: Final = 20
# Batches whose texts are sorted by length together, so that little is padding.
_SORTED_TOGETHER: Final = 16


def divide(texts: Sequence[Text]) -> tuple[list[Text], list[Text]]:
    """Texts to train on, and those that are held out."""
    return (
        [text for text in texts if text.job % HELD_OUT],
        [text for text in texts if not text.job % HELD_OUT],
    )


def epoch(lengths: Sequence[int], tokens: int, *, seed: int, number: int) -> list[list[int]]:
    """Indices of texts, batch by batch; a batch with padding has at most `tokens`, or one text."""
    random = Random(f"{seed}/{number}")
    order = list(range(len(lengths)))
    random.shuffle(order)
    batches: list[list[int]] = []
    pool: list[int] = []
    for index in order:
        pool.append(index)
        if sum(lengths[one] for one in pool) >= tokens * _SORTED_TOGETHER:
            batches += _cut(pool, lengths, tokens)
            pool = []
    batches += _cut(pool, lengths, tokens)
    random.shuffle(batches)
    return batches


def _cut(pool: list[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in sorted(pool, key=lambda one: (-lengths[one], one)):
        # The first is the longest: the others are padded to it.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
